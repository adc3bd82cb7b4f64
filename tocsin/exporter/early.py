"""
Takes in what other programs have inserted into ``error_logs``: grouped, counted, rung.

Their rows keep what they say; a writer's own severity and category stand. Rows that stood there before
the table was adopted are grouped behind, newest first, and never ring.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from operator import attrgetter

from sqlalchemy import Connection

from tocsin import clock, ids
from tocsin.contained import note, own_threads
from tocsin.exporter import classify, frames
from tocsin.exporter.fingerprint import culprit, fingerprint, title
from tocsin.exporter.scrub import scrub_text
from tocsin.failures import SchemaMismatch, StoreAway
from tocsin.model import EarlyRecord, Severity
from tocsin.store import Store, adopt, leases, queries
from tocsin.store.adopt import EarlyRow, Place, Rows
from tocsin.text import clean

SERVICE = "error_logs"
"""The service of groups whose rows name none."""

Say = Callable[[str], None]
Categories = tuple[tuple[str, str, str], ...]

BATCH = 1_000
_MOST_S = 1.0  # how long one call may take in what was just inserted
_SLICE_S = 0.2  # how long one call may work on what stood there before, at most half of the time
_SHARE_LEFT = 0.05  # of the time of a batch: so long `finish` leaves the database to its writers after each
_STRUGGLES_S = 0.5  # for a batch, five times the usual: half of the time is its writers' then
_BUSY_ELSEWHERE_S = 5.0
_LONGEST_PAUSE_S = 30.0
_LOOK_BACK_S = 60.0
_LEFT_ALONE_S = 600.0
_LEASE_S = 15.0
_SAY_EVERY_S = 5.0


def record_of(row: EarlyRow, which: Rows, own: Categories = ()) -> EarlyRecord:
    """
    What the store takes of a row; only a severity or category that the row has not is judged.

    Args:
        own: categories of the team's own, as in the settings.
    """
    facts = _facts(row.exception_type, row.message, row.stack, row.place)
    is_judged = row.severity not in _SEVERITIES or not row.category
    verdict = classify.classify(facts.evidence, own) if is_judged else None
    severity = Severity(row.severity) if row.severity in _SEVERITIES else None
    return EarlyRecord(
        id=row.id,
        timestamp=row.timestamp,
        severity=severity or (verdict.severity if verdict else Severity.HIGH),
        category=row.category or (verdict.category if verdict else "unknown"),
        message=row.message,
        fingerprint=facts.fingerprint,
        title=facts.title,
        culprit=facts.culprit,
        service=row.service or SERVICE,
        environment=row.environment or "development",
        exception_type=facts.exception_type,
        count=row.count,
        rings=which is Rows.UNTAKEN and row.resolved_at is None,
        resolved_at=row.resolved_at,
    )


_SEVERITIES = frozenset(Severity)


def group_of(record: EarlyRecord) -> str:
    """The id of the group that a row belongs to."""
    return ids.group_id(record.fingerprint, record.service, record.environment)


def added_up(records: Sequence[EarlyRecord]) -> list[EarlyRecord]:
    """
    Rows that ring nobody, those alike of an hour as two at most: the newest for all, and the oldest.

    A group comes to the same by them as by each: it counts by hours, and asks else for the first and the last
    time, the worst severity, and until when all was resolved.
    """
    alike: dict[tuple[object, ...], list[EarlyRecord]] = {}
    for one in records:
        hour = one.timestamp.replace(minute=0, second=0, microsecond=0)
        kind = group_of(one), hour, one.severity, one.category, one.resolved_at is None
        alike.setdefault(kind, []).append(one)
    sums = []
    for those in alike.values():
        newest, oldest = max(those, key=_moment), min(those, key=_moment)
        count = sum(one.count for one in those) - (oldest.count if oldest is not newest else 0)
        ends = [one.resolved_at for one in those if one.resolved_at is not None]
        sums.append(replace(newest, count=count, resolved_at=max(ends, default=None)))
        if oldest is not newest:
            sums.append(oldest)
    return sorted(sums, key=_moment, reverse=True)


_moment = attrgetter("timestamp")


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is worked out of a row's texts; the same for each row that says the same."""

    exception_type: str | None
    fingerprint: str
    title: str
    culprit: str | None
    evidence: classify.Evidence


@lru_cache(maxsize=512)
def _facts(exception_type: str | None, message: str, stack: str | None, place: str | None) -> _Facts:
    outline = frames.outline(stack) if stack else None
    kind = exception_type or (clean(outline.exception_type, 300) if outline else None)
    found = frames.parse(stack) if stack else []
    shown = clean(scrub_text(message))
    where = None if place is None else clean(scrub_text(place), 200)
    return _Facts(
        exception_type=kind,
        fingerprint=fingerprint(exception_type=kind, frames=found, message=message, place=where),
        title=title(kind, shown),
        culprit=culprit(found) or where,
        evidence=classify.Evidence(
            types=(kind,) if kind else (), message=message, modules=tuple(one.module for one in found)
        ),
    )


class Early:
    """
    A chore of the server's drain: looks for such rows, about twice a second.

    It never raises: what it cannot do now it does later, and nothing else waits for it.

    Args:
        store: gives the store of the thread that calls this; may raise `StoreAway`.
        say: told of progress.
    """

    def __init__(self, store: Callable[[], Store], categories: Categories = (), say: Say | None = None) -> None:
        self._store = store
        self._taker = _Taker(categories)
        self._say = say or _to_nobody
        self._owner = _name_of_process()
        self._builder: threading.Thread | None = None
        self._has_indexes = False
        self._failed = 0
        self._next_look = 0.0
        self._next_before = 0.0
        self._until: datetime | None = None
        self._grouped = 0

    def __call__(self) -> None:
        """Take in what there is, for a fraction of a second."""
        if time.monotonic() < self._next_look:
            return
        try:
            self._look(self._store())
            self._failed = 0
        except (StoreAway, SchemaMismatch):
            self._pause()
        except Exception as problem:
            note("taking in rows of other programs", problem)
            self._pause()

    def _pause(self) -> None:
        self._failed += 1
        self._next_look = time.monotonic() + min(0.25 * 2**self._failed, _LONGEST_PAUSE_S)

    def _look(self, store: Store) -> None:
        if not self._has_indexes and not self._are_indexes_ready(store):
            return
        is_before_due = time.monotonic() >= self._next_before
        has_untaken, has_before = store.read_now(_waiting, is_before_due)
        if has_untaken:
            begun = time.monotonic()
            while self._taker.take(store, Rows.UNTAKEN)[0] == BATCH and time.monotonic() - begun < _MOST_S:
                pass
        if has_before:
            self._group_some(store)
        elif is_before_due:
            if self._grouped:
                self._say(f"error_logs: what stood there before is grouped, {self._grouped} rows by this server")
            self._grouped, self._until, self._next_before = 0, None, time.monotonic() + _LOOK_BACK_S

    def _are_indexes_ready(self, store: Store) -> bool:
        """On a large table they are built first, in a thread of their own; nothing is looked for without them."""
        self._has_indexes = store.read_now(adopt.are_indexes_ready)
        if not self._has_indexes:
            if self._builder is None or not self._builder.is_alive():
                arguments = (store, self._owner, self._say)
                self._builder = threading.Thread(target=_build, args=arguments, name="tocsin-indexes", daemon=True)
                self._builder.start()
            self._next_look = time.monotonic() + 1.0
        return self._has_indexes

    def _group_some(self, store: Store) -> None:
        """A slice of what stood there before, by one server at a time; then at least as long nothing of it."""
        begun = time.monotonic()
        if store.write_now(leases.acquire, "adoption", self._owner, _LEASE_S) is None:
            self._next_before = begun + _BUSY_ELSEWHERE_S
            return
        if not self._grouped:
            self._say("error_logs: what stood there before is being grouped; none of it rings")
        before = self._grouped
        while time.monotonic() - begun < _SLICE_S:
            start = self._until
            taken, self._until = self._taker.take(store, Rows.BEFORE, start)
            self._grouped += taken
            if not taken and start is None:
                break
        # What is left and was not taken is held by somebody, or left alone for a while.
        now = time.monotonic()
        self._next_before = now + (now - begun if self._grouped > before else _BUSY_ELSEWHERE_S)


def finish(store: Store, categories: Categories = (), say: Say | None = None) -> None:
    """
    Build all indexes and group all rows now, however long it takes; servers may run meanwhile.

    Raises:
        StoreAway: the database is away; what was done stays.
    """
    say = say or _to_nobody
    adopt.build_indexes(store, _name_of_process(), say)
    taker = _Taker(categories)
    for which in Rows:
        total = store.read_now(adopt.count, which)
        if total:
            _finish(store, taker, which, total, say)


def _finish(store: Store, taker: _Taker, which: Rows, total: int, say: Say) -> None:
    begun = said = time.monotonic()
    done, until = 0, None
    while True:
        start, started = until, time.monotonic()
        taken, until = taker.take(store, which, start)
        done += taken
        took = time.monotonic() - started
        time.sleep(took if took > _STRUGGLES_S else _SHARE_LEFT * took)
        if taken < BATCH and (which is Rows.UNTAKEN or (not taken and start is None)):
            break  # a writer may be at work; what it inserts from now on is not waited for
        if time.monotonic() - said >= _SAY_EVERY_S:
            said = time.monotonic()
            percent = min(100 * done // total, 100)
            say(f"grouping rows: {done} of {total}, {percent} %, {done / (said - begun):.0f} a second")
    say(f"grouped {done} rows of error_logs in {time.monotonic() - begun:.1f} s")


class _Taker:
    """Takes rows in, and gets past those that cannot be."""

    def __init__(self, categories: Categories) -> None:
        self._categories = categories
        self._left_alone: dict[str, float] = {}

    def take(self, store: Store, which: Rows, until: datetime | None = None) -> tuple[int, datetime | None]:
        """
        Take in the next `BATCH` rows.

        Returns:
            How many, and of `Rows.BEFORE` where to go on; nothing and None when there are no more.
        """
        self._left_alone = {one: end for one, end in self._left_alone.items() if end > time.monotonic()}
        try:
            return store.write_now(
                _take, which, self._categories, limit=BATCH, until=until, without=tuple(self._left_alone)
            )
        except Exception:
            # A database that takes a write, yet not these rows, has something against one of them.
            store.write_now(queries.probe_write, clock.now())
            return self._one_by_one(store, which, until), None

    def _one_by_one(self, store: Store, which: Rows, until: datetime | None) -> int:
        done = 0
        for row_id in store.read_now(adopt.ids_of, which, BATCH + len(self._left_alone), until):
            if row_id in self._left_alone:
                continue
            try:
                done += store.write_now(_take, which, self._categories, limit=1, only=row_id)[0]
            except Exception as refusal:
                note(f"grouping row {row_id} of error_logs", refusal)
                done += self._set_aside(store, row_id)
        return done

    def _set_aside(self, store: Store, row_id: str) -> int:
        """For good, as far as the database lets it; a row that nobody may change is left alone for a while."""
        try:
            store.write_now(adopt.refuse, row_id)
        except Exception:
            store.write_now(queries.probe_write, clock.now())  # when it is away, that is no fault of the row
            self._left_alone[row_id] = time.monotonic() + _LEFT_ALONE_S
            return 0
        return 1


def _take(
    connection: Connection,
    which: Rows,
    categories: Categories,
    *,
    limit: int,
    until: datetime | None = None,
    only: str | None = None,
    without: tuple[str, ...] = (),
) -> tuple[int, datetime | None]:
    rows = adopt.hold(connection, which, limit=limit, until=until, only=only, without=without)
    records = [record_of(row, which, categories) for row in rows]
    places = [Place(one.id, group_of(one), one.exception_type) for one in records]
    adopt.take(connection, places, added_up(records) if which is Rows.BEFORE else records)
    if which is Rows.BEFORE:
        adopt.tidy(connection)
    return len(rows), rows[-1].timestamp if rows and which is Rows.BEFORE else None


def _waiting(connection: Connection, is_before_due: bool) -> tuple[bool, bool]:
    return adopt.waiting(connection, Rows.UNTAKEN), is_before_due and adopt.waiting(connection, Rows.BEFORE)


def _build(store: Store, owner: str, say: Say) -> None:
    own_threads.add(threading.get_ident())
    try:
        adopt.build_indexes(store, owner, say)
    except StoreAway as problem:
        say(f"the indexes of error_logs are not built yet: {problem}")
        time.sleep(_LONGEST_PAUSE_S)
    except Exception as problem:
        note("building the indexes of error_logs", problem)
        time.sleep(_LONGEST_PAUSE_S)
    finally:
        own_threads.discard(threading.get_ident())


def _name_of_process() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _to_nobody(text: str) -> None:
    """For who does not want to be told."""
