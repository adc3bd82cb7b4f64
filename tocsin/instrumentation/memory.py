"""
The memory of this process: how fast it grows, and a warning before its limit, with what grew.

Looked at once a second by the thread `tocsin-pulse`, for some microseconds. What grew is looked at in a thread of
its own, and only in a process that may come to need it: once when it has begun and takes a quarter of its limit,
again when it is warned of, and at the limit, so that whoever restarts it then can say why.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tocsin import clock, semconv
from tocsin.contained import contained, own_threads
from tocsin.exporter import limits
from tocsin.exporter.life import resident_bytes
from tocsin.exporter.limits import Limit
from tocsin.exporter.spool import Spool
from tocsin.ids import uuid7
from tocsin.instrumentation import state
from tocsin.loading import loading
from tocsin.model import Severity

if TYPE_CHECKING:
    from tocsin.instrumentation.growth import Survey

MECHANISM: Final = "memory"
TOLD: Final = "TOCSIN_TOLD"
MAX_MEMORY: Final = "TOCSIN_MAX_MEMORY"
"""What `tocsin run` tells its program: where to say why it ends; bytes and the number of who looks after them."""

SOON_S: Final = 15 * 60
"""A process that would reach its limit within this time is warned of …"""

HALF: Final = 0.5
"""… where it takes so much of it already."""

AT_LIMIT: Final = 0.95
"""From here on it is looked at once more: what is found is what a restart tells."""

CALM_S: Final = 60.0
"""A warning is over when memory has been well below it for so long."""

_EVERY_S = 0.9  # a pulse may come a little early
_LIMITS_EVERY_S = 60.0  # they may be changed while a process runs
_BASE_SHARE = 0.25
_BASE_AFTER_S = 60.0
_BELOW = 7 / 8  # of where it warns
_FAR_S = 4 * SOON_S
_MOST_SAID = 1000


class Trend:
    """
    How memory goes, in bytes an hour, and only where that is sure.

    What counts is the least of each minute: requests come and go, and what stays is there between them too. The
    slower of the two halves of the time is what is said, so that one step, as by a cache that fills, is no trend.
    """

    WINDOW_S: Final = 60.0
    MOST: Final = 15
    FEWEST: Final = 6

    def __init__(self) -> None:
        self._windows: deque[tuple[float, int]] = deque(maxlen=self.MOST)
        self._ends_s: float | None = None
        self._least: tuple[float, int] | None = None
        self._is_first = True
        self.per_hour: float | None = None  # None: not known yet

    def note(self, moment_s: float, size: int) -> None:
        """What is resident at a moment (monotonic); the first minute, in which a program loads itself, is left out."""
        if self._ends_s is None:
            self._ends_s = moment_s + self.WINDOW_S
        if moment_s >= self._ends_s:
            if self._least is not None and not self._is_first:
                self._windows.append(self._least)
                self.per_hour = self._slope()
            self._is_first = False
            self._least = None
            self._ends_s = moment_s + self.WINDOW_S
        if self._least is None or size < self._least[1]:
            self._least = (moment_s, size)

    def _slope(self) -> float | None:
        if len(self._windows) < self.FEWEST:
            return None
        points = list(self._windows)
        third = len(points) // 3
        middle = (len(points) - third) // 2
        early, half, late = points[:third], points[middle : middle + third], points[-third:]
        (first_s, first), (then_s, then), (last_s, last) = (
            (_median([moment for moment, _ in part]), _median([size for _, size in part]))
            for part in (early, half, late)
        )
        before, after = (then - first) / (then_s - first_s), (last - then) / (last_s - then_s)
        slower = min(before, after, key=abs) if before * after > 0 else 0.0
        return slower * 3600


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)  # `statistics` loads decimals and fractions
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def left_s(used: int, limit: int, per_hour: float | None) -> float | None:
    """In how many seconds a limit is reached, as it goes; None where it is not, or nobody knows."""
    return max(limit - used, 0) / per_hour * 3600 if per_hour is not None and per_hour > 0 else None


def is_to_warn(used: int, limit: int, per_hour: float | None, percent: int) -> bool:
    """Whether memory is near its limit, or soon will be."""
    if used >= limit * percent / 100:
        return True
    rest_s = left_s(used, limit, per_hour)
    return used >= limit * HALF and rest_s is not None and rest_s <= SOON_S


def is_well(used: int, limit: int, per_hour: float | None, percent: int) -> bool:
    """Whether it is far enough from its limit that a warning is over; between the two nothing changes."""
    rest_s = left_s(used, limit, per_hour)
    is_slow = rest_s is None or rest_s >= _FAR_S or used < limit * HALF * _BELOW
    return used < limit * percent / 100 * _BELOW and is_slow


class Watch:
    """
    Keeps an eye on the memory of this process; `look` is called about once a second, by one thread.

    Args:
        percent: of the limit, from which on it warns; 0 for never.
        tell: gets each line for the spool.
        read: the resident memory in bytes.
        find: the limits.
    """

    def __init__(
        self,
        spool: Spool,
        percent: int,
        *,
        tell: Callable[[dict[str, Any]], None] | None = None,
        read: Callable[[], int | None] = resident_bytes,
        find: Callable[[], list[Limit]] | None = None,
    ) -> None:
        self._spool = spool
        self._percent = percent
        self._tell = tell or _tell
        self._read = read
        self._find = find or (lambda: limits.found(os.environ.get(MAX_MEMORY, "")))
        self._limits: list[Limit] = []
        self._next_look_s = self._next_limits_s = float("-inf")
        self._began_s: float | None = None
        self._began_ns = clock.now_ns()
        self._trend = Trend()
        self._base: Survey | None = None
        self._is_base_taken = self._is_limit_told = False
        self._warned: str | None = None  # the id of the error, while it is one
        self._well_since_s: float | None = None
        self._looking: threading.Thread | None = None

    @property
    def is_looking(self) -> bool:
        """Whether it is being found out what grew."""
        return self._looking is not None

    def look(self, now_s: float | None = None) -> None:
        """Look at the memory, and do what is to be done about it; keeps its own pace."""
        now_s = time.monotonic() if now_s is None else now_s
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _EVERY_S
        resident = self._read()
        if not resident:
            return
        if self._began_s is None:
            self._began_s = now_s
        if now_s >= self._next_limits_s:
            self._next_limits_s = now_s + _LIMITS_EVERY_S
            self._limits = self._find()
        self._trend.note(now_s, resident)
        self._say(self._limits[0].bytes)
        if self._percent and self._looking is None:
            self._judge(resident, now_s, now_s - self._began_s)

    def _say(self, lowest: int) -> None:
        life = self._spool.life
        life.note_limit(lowest)
        if self._trend.per_hour is not None:
            life.note_trend(self._trend.per_hour)

    def _judge(self, resident: int, now_s: float, uptime_s: float) -> None:
        """By the limit of which the most is taken."""
        used, limit = max(
            ((one.used(resident, now_s), one) for one in self._limits), key=lambda pair: pair[0] / pair[1].bytes
        )
        share, per_hour = used / limit.bytes, self._trend.per_hour
        if self._warned is not None:
            self._look_after_warning(used, limit, now_s)
        elif is_to_warn(used, limit.bytes, per_hour, self._percent) and self._is_ours(resident, share, limit):
            self._warned = uuid7(clock.now_ns())
            self._start(lambda: self._warn(used, limit, resident))
        elif not self._is_base_taken and (
            share >= HALF * self._percent / 100 or (share >= _BASE_SHARE and uptime_s >= _BASE_AFTER_S)
        ):
            self._is_base_taken = True
            self._start(self._take_base)

    def _is_ours(self, resident: int, share: float, limit: Limit) -> bool:
        """
        Whether this process is the one to say it, of all that have the same limit: the one that takes the most.

        It may be one that says nothing: half way to the limit those speak that take half as much, at the end all.
        """
        most = max(limit.others(), default=0)
        is_half_way = share >= (1 + self._percent / 100) / 2
        return resident >= most or share >= AT_LIMIT or (is_half_way and resident >= most / 2)

    def _look_after_warning(self, used: int, limit: Limit, now_s: float) -> None:
        if used >= limit.bytes * AT_LIMIT and not self._is_limit_told:
            self._is_limit_told = True
            self._start(lambda: self._find_out_again(limit))
        if not is_well(used, limit.bytes, self._trend.per_hour, self._percent):
            self._well_since_s = None
        elif self._well_since_s is None:
            self._well_since_s = now_s
        elif now_s - self._well_since_s >= CALM_S:
            self._recover(used, limit)

    def _recover(self, used: int, limit: Limit) -> None:
        message = f"memory is at {_percent(used, limit.bytes)} of its limit again: {_of(used, limit)}"
        self._tell(
            {
                "kind": "recovered",
                "time_unix_nano": clock.now_ns(),
                "error_id": self._warned,
                "message": message,
            }
        )
        self._warned = self._well_since_s = None
        self._is_limit_told = False
        if (path := finding_path()) is not None:
            path.unlink(missing_ok=True)

    # In a thread of its own, one at a time.

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            own_threads.add(threading.get_ident())
            try:
                with contained("looking at the memory"):
                    work()
            finally:
                own_threads.discard(threading.get_ident())
                self._looking = None

        self._looking = threading.Thread(target=run, name="tocsin-memory", daemon=True)
        try:
            self._looking.start()
        except RuntimeError:  # no more threads
            self._looking = None
            work()

    def _take_base(self) -> None:
        growth = _growth()
        self._base = growth.without_detail(growth.survey())

    def _warn(self, used: int, limit: Limit, resident: int) -> None:
        said, facts = self._what_grew(limit)
        message = f"memory is at {_percent(used, limit.bytes)} of its limit: {_of(used, limit)}"
        uptime_s = (clock.now_ns() - self._began_ns) / 1e9
        message += f" after {_span(uptime_s)}"
        if per_hour := self._trend.per_hour:
            message += f", {_megabytes(per_hour):+,.0f} MB an hour"
            if (rest_s := left_s(used, limit.bytes, per_hour)) is not None:
                message += f" (reached in {_span(rest_s)})"
        if said:
            message += f"; grew most: {said}"
        figures = {"used": used, "limit": limit.bytes, "limit_by": limit.by}
        figures |= {} if per_hour is None else {"per_hour": int(per_hour)}
        self._tell(
            {
                "kind": "error",
                "id": self._warned,
                "time_unix_nano": clock.now_ns(),
                "severity_number": 17,
                "event_name": semconv.EVENT_EXCEPTION,
                "trace_id": None,
                "span_id": None,
                "body": message,
                "attributes": {
                    semconv.MECHANISM: MECHANISM,
                    semconv.HANDLED: False,
                    semconv.SEVERITY: str(Severity.HIGH),
                    semconv.CATEGORY: "unknown",
                    semconv.PLACE: MECHANISM,
                    semconv.TEMPLATE: MECHANISM,  # one group, whatever grew
                    semconv.PROCESS_MEMORY: resident,
                    semconv.PROCESS_MEMORY_LIMIT: limit.bytes,
                    semconv.PROCESS_UPTIME: round(uptime_s, 3),
                    semconv.CONTEXT: {semconv.MEMORY: figures | facts},
                },
            }
        )

    def _find_out_again(self, limit: Limit) -> None:
        self._what_grew(limit)

    def _what_grew(self, limit: Limit) -> tuple[str, dict[str, Any]]:
        """In a line and in full; the line is left for a parent that restarts this process."""
        said, facts = "", {}
        with contained("finding out what grew"):
            growth = _growth()
            found = growth.survey(self._base)
            said, facts = growth.said(self._base, found), growth.as_facts(self._base, found)
        if said and (path := finding_path()) is not None:
            with contained("noting what grew"):
                # Of several workers, what the largest says counts.
                if (self._read() or 0) >= max(limit.others(), default=0) or not path.exists():
                    _write(path, said[:_MOST_SAID])
        return said, facts


def finding_path() -> Path | None:
    """Where `tocsin run` looks for what grew when it restarts the program of this process; None without one."""
    told = os.environ.get(TOLD)
    return Path(told).with_suffix(".grew") if told else None


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(f".{os.getpid()}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, text.encode("utf-8", "replace"))
    finally:
        os.close(fd)
    try:
        new.rename(path)
    except OSError:
        with suppress(OSError):
            new.unlink()


def _growth() -> Any:
    """Loaded when it is needed, which in most processes is never."""
    with loading():
        from tocsin.instrumentation import growth  # noqa: PLC0415

    return growth


def _tell(line: dict[str, Any]) -> None:
    if (witness := state.current) is not None:
        witness.tell(line)


def _percent(used: int, limit: int) -> str:
    return f"{used * 100 // limit} %"


def _of(used: int, limit: Limit) -> str:
    by = {"cgroup": "its control group", "machine": "the machine"}.get(limit.by, limit.by)
    return f"{_megabytes(used):,.0f} MB of {_megabytes(limit.bytes):,.0f} MB ({by})"


def _megabytes(size: float) -> float:
    return size / 2**20


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
