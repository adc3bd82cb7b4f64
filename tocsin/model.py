"""The words: what an error is, how bad it is, and what travels from the exporter to the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = "0003"
"""The schema that this code works with: the newest revision in ``store/migrations``. Revisions sort by age."""


class Severity(StrEnum):
    """How bad an error is; ordered by `rank`, since the highest that anyone reports wins."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 (low) to 3 (critical)."""
        return _RANKS[self]


_RANKS = {severity: rank for rank, severity in enumerate(Severity)}


def worst(*severities: Severity) -> Severity:
    """The highest of some severities."""
    return max(severities, key=lambda severity: severity.rank)


CATEGORIES = (
    "amocrm",
    "telegram",
    "database",
    "queue",
    "api",
    "validation",
    "network",
    "authentication",
    "unknown",
)
"""The categories that tocsin knows by itself; a team may add its own words by settings."""


@dataclass(slots=True, kw_only=True)
class Frame:
    """One frame of a stack, outermost first in a list of them."""

    module: str  #      "shop.orders"; for a file that no module is known of, its path without the root
    function: str  #    qualified where Python says so: "Cart.add"
    file: str
    line: int
    text: str = ""  #   the source line, stripped
    in_app: bool = False  # the team's own, not a library's
    before: list[str] = field(default_factory=list)  # source lines around, only on the team's own frames
    after: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ErrorRecord:
    """
    One error as it is stored: a row of ``error_logs`` and what its group needs.

    Text is cleaned, shortened and scrubbed before a record is made.
    """

    id: str  #                       UUIDv7, hyphenated, made at capture: the store takes an id once
    timestamp: datetime  #           UTC, when it happened
    severity: Severity
    category: str
    message: str
    fingerprint: str  #              with its version in front: 1-9f0c…
    title: str  #                    what people read in a list: "KeyError: 'phone'"
    service: str
    environment: str
    culprit: str | None = None  #    "shop.orders in create_order", the team's own innermost frame
    stack: str | None = None
    context: dict[str, Any] = field(default_factory=dict)
    release: str | None = None
    exception_type: str | None = None  # fully qualified; builtins bare
    trace_id: str | None = None  #   32 hex digits
    span_id: str | None = None  #    16 hex digits
    handled: bool | None = None
    mechanism: str | None = None  #  what saw it: asgi, logging, excepthook, …
    instance_id: str | None = None
    count: int = 1
    is_synthetic: bool = False  #    made by tocsin to test its own way; never shown, never rings
    from_outside: bool = False  #    came by HTTP, where it may come again: its id is kept apart from its row
    is_shipped: bool = False  #      so that it came as another tocsin's line: repeats of it may follow
    is_summed_up: bool = False  #    beyond the cap: it counts on the newest full error of its group
    is_brief: bool = False  #        known to be so when it came, so that it has no stack and context
    kind: int | None = None  #       which others are like it, for as long as this process lives


@dataclass(slots=True, kw_only=True)
class EarlyRecord(ErrorRecord):
    """An error whose row another program has written: it is taken in, and its row keeps what it says."""

    rings: bool = True  #            False for what stood there before, or came resolved: it only counts
    resolved_at: datetime | None = None  # None: not resolved


@dataclass(slots=True, kw_only=True)
class Amendment:
    """What a later sighting of a stored error knows better; only what is not None counts."""

    error_id: str
    severity: Severity | None = None  # raises, never lowers
    category: str | None = None
    handled: bool | None = None  #      only False says something new
    mechanism: str | None = None
    context: dict[str, Any] = field(default_factory=dict)  # joined; what is there stays
    is_shipped: bool = False  #        came by HTTP as another tocsin's line, maybe before its error


@dataclass(slots=True, kw_only=True)
class Repeats:
    """So many more errors like the one with this id, counted in a storm instead of written out."""

    error_id: str
    count: int
    timestamp: datetime  #             UTC, of the last of them
    id: str | None = None  #           a UUID for what came by HTTP, where it may come again: it counts once


@dataclass(slots=True, kw_only=True)
class Instance:
    """One process that tocsin watches."""

    id: str
    service: str
    environment: str
    release: str | None
    host: str
    pid: int
    started_at: datetime
    python_version: str | None = None
    memory_bytes: int | None = None  # resident set
    active_requests: int | None = None
    is_shutting_down: bool = False
    spool_bytes: int | None = None
    loop_lag_ms: int | None = None  #         the longest that its event loop kept others waiting lately
    memory_limit_bytes: int | None = None  #  at which it is ended: by its cgroup, its machine or `--max-memory`
    memory_trend: int | None = None  #        bytes that it grows by in an hour, as it has gone lately
    lost: int = 0  #                  errors that only were counted, since the spool was full
    beats_every_s: float | None = None  #     how often this is said anew at the least; 0: that is not promised
    seen_at: datetime | None = None  #  when the process itself said last that it lives; None: now
    is_alive: bool = True  #         False for one whose spool somebody else has taken over
    ended_at: datetime | None = None
    ended_how: str | None = None


@dataclass(slots=True, kw_only=True)
class Recovery:
    """What an error told of is over, as tocsin sees by itself: its group is resolved, and who heard hears that too."""

    error_id: str
    timestamp: datetime  #      UTC, since when
    message: str  #             "redis answers again after 42 s"
    is_shipped: bool = False  # came by HTTP, maybe before its error


Entry = ErrorRecord | Amendment | Repeats | Recovery


@dataclass(slots=True, kw_only=True)
class Job:
    """A piece of a user's work that failed after its retries, kept for a person: a row of ``jobs``."""

    id: str  #                    UUIDv7, made when it failed: the store takes an id once
    failed_at: datetime  #        UTC
    function: str  #              its import path: "shop.leads:Pusher.push"
    file: str | None  #           where it was defined: a script has no import path
    folder: str | None  #         the working folder of the service
    arguments: dict[str, Any]  #  {"args": […], "kwargs": {…}}, JSON, scrubbed and bounded
    changed: list[str]  #         what scrubbing or shortening has changed: ["args.0", "kwargs.token"]
    attempts: list[dict[str, Any]]  # [{"at": ISO 8601, "type", "message", "ms"}], the last tries
    tries: int
    service: str
    environment: str
    release: str | None = None
    category: str | None = None
    exception_type: str | None = None
    message: str = ""
    error_id: str | None = None
    instance_id: str | None = None


@dataclass(slots=True, kw_only=True)
class Beat:
    """A sign of life of something that runs on a schedule: into its row of ``beats``."""

    name: str
    timestamp: datetime  #             UTC
    environment: str
    service: str | None = None
    every_s: float | None = None  #    None: as it was said before
    grace_s: float | None = None
    is_ok: bool = True  #              False: it ran, and failed
    took_s: float | None = None
    message: str = ""


@dataclass(slots=True, kw_only=True)
class DependencyState:
    """How something stands that a service needs, when that changes: a row of ``dependencies`` for each process."""

    name: str
    is_away: bool
    is_optional: bool
    since: datetime
    service: str
    environment: str
    instance_id: str
    problem: str = ""


Fact = Job | Beat | DependencyState
"""What a process tells besides errors; none of them is counted, each makes or refreshes a row."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """What one transaction of the exporter stores, in the order in which it happened."""

    entries: list[Entry]
    instance: Instance | None = None  # whose segment it was; its row is made or refreshed
    instances: list[Instance] = field(default_factory=list)  # others that have told how they are
    facts: list[Fact] = field(default_factory=list)
    segment: str | None = None  #       the spool segment that the entries were read from …
    start: int = 0  #                   … from which byte, which is how far it was stored before …
    position: int = 0  #                … and up to which; stored in the same transaction


@dataclass(slots=True, kw_only=True)
class Stored:
    """One new row, as the line on stderr names it."""

    error_id: str
    number: int  #                     of its group
    severity: Severity
    category: str
    title: str
    reason: str | None  #              "new", "regressed", or None
