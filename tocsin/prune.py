"""`tocsin prune`: one run of retention, at once and before somebody's eyes."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TextIO

from tocsin import clock
from tocsin.failures import StoreAway, TableMissing, TocsinError
from tocsin.store import Store, jobs, queries, retention
from tocsin.store.retention import Policy, Run, Task
from tocsin.terminal import safe

PATIENCE_S = 600.0
"""A database may be away for so long in the midst of a run."""

_RETRY_S = 1.0
_TERMINAL_EVERY_S = 0.2
_LINES_EVERY_S = 5.0


def words_of(task: Task, policy: Policy) -> str:
    """What a task removes, in words that follow a number."""
    history = max(retention.OLD_GROUP_AGE.days, policy.days)
    return {
        Task.AGE: f"errors older than {policy.days} days",
        Task.CLOCK: f"errors stored {policy.days} days ago, by a clock that was ahead",
        Task.HOURS: f"errors beyond {retention.KEPT_PER_HOUR} of a group and hour (they still count)",
        Task.SIZE: f"of the oldest errors, to hold at most {policy.max_db_mb} MB",
        Task.GROUPS: f"groups unseen for {history} days",
        Task.COUNTS: f"counts of groups per hour, older than {retention.TOTALS_AGE.days} days",
        Task.TOTALS: f"counts per hour, older than {retention.TOTALS_AGE.days} days",
        Task.ALERTS: f"alerts older than {history} days",
        Task.JOBS: f"jobs dealt with {policy.days} days ago, and failed ones beyond the newest {jobs.MOST_WAITING:,}",
    }[task]


@dataclass(slots=True, kw_only=True)
class Pruned:
    """What a run has come to."""

    removed: Counter[Task]
    used_bytes: int
    file_bytes: int
    free_bytes: int  #               of SQLite's file; what comes next fills it
    stopped_by: int | None = None  # the signal that ended it early


@dataclass(slots=True)
class Stop:
    """Whether somebody wants it to end, by which signal; looked at between two transactions."""

    by: int | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.by = number
        signal.signal(number, signal.SIG_DFL)  # who asks twice cannot wait


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Take Ctrl-C and SIGTERM as a wish; in the main thread."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def measured(store: Store, removed: Counter[Task]) -> Pruned:
    """How much the database holds now."""
    return Pruned(
        removed=removed,
        used_bytes=store.read_now(retention.used_bytes),
        file_bytes=store.read_now(retention.file_bytes),
        free_bytes=store.read_now(retention.free_bytes),
    )


def count(store: Store, policy: Policy) -> Counter[Task]:
    """What a run would remove."""
    unhurried = store.unhurried()
    try:
        return unhurried.read_now(retention.count, policy)
    finally:
        unhurried.close_now()


def prune(store: Store, policy: Policy, stop: Stop, stream: TextIO | None = None) -> Pruned:
    """
    Remove what is too old or too much, in small transactions, beside whoever works there.

    Args:
        stop: ends it after the transaction under way; what was done stays.
        stream: where the progress is shown (default: stderr).

    Raises:
        TocsinError: the database takes no writes when it begins.
        StoreAway: it was away for longer than `PATIENCE_S` later on.
    """
    stream = stream or sys.stderr
    _require_writes(store)
    progress = Progress(stream, count(store, policy), policy)
    run = Run(policy)
    has_begun = False
    stuck_since: float | None = None
    while run.task is not None and stop.by is None:
        began = time.monotonic()
        problem = _do_some(store, run, can_wait=has_begun)
        if problem is None:
            has_begun, stuck_since = True, None
            progress.show(run)
            # Half of the time belongs to others.
            time.sleep(max(time.monotonic() - began, retention.REST_S))
            continue
        stuck_since = stuck_since or began
        if began - stuck_since > PATIENCE_S:
            raise problem
        progress.say(f"{problem}; it goes on by itself")
        time.sleep(_RETRY_S)
    progress.end(run)
    pruned = measured(store, +run.removed)
    pruned.stopped_by = stop.by
    return pruned


def _do_some(store: Store, run: Run, *, can_wait: bool) -> StoreAway | None:
    """One transaction; or why there is none just now, which is worth a wait once it has begun."""
    try:
        chunk = store.write_now(run.chunk)
    except TableMissing:
        raise
    except StoreAway as problem:
        if not can_wait:
            raise _nothing(problem) from problem
        return StoreAway(f"the database is away: {problem}")
    run.note(chunk)
    return StoreAway("SQLite's log is long, and somebody reads in it") if chunk.is_held_up else None


def _require_writes(store: Store) -> None:
    """Tell whoever waits at once, before all is counted, that nothing can be removed."""
    try:
        store.write_now(queries.probe_write, clock.now())
    except TableMissing:
        raise
    except StoreAway as problem:
        raise _nothing(problem) from problem


def _nothing(problem: StoreAway) -> TocsinError:
    return TocsinError(f"nothing is removed: {problem}")


@dataclass(slots=True)
class Progress:
    """One line that changes on a terminal; elsewhere a line every few seconds."""

    stream: TextIO
    expected: Counter[Task]
    policy: Policy
    began: float = field(default_factory=time.monotonic)
    _shown_at: float = field(init=False)
    _said: str = field(init=False, default="")
    _is_line_open: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._shown_at = self.began

    def show(self, run: Run) -> None:
        """How far it is, if that was not shown just now."""
        every_s = _TERMINAL_EVERY_S if self.stream.isatty() else _LINES_EVERY_S
        if time.monotonic() - self._shown_at >= every_s:
            self._shown_at = time.monotonic()
            self._said = ""
            self._write(self._how_far(run))

    def say(self, text: str) -> None:
        """Something that happened; once, until it goes on."""
        if text != self._said:
            self._said = text
            self._write(f"tocsin: {safe(text)}", ends_line=True)

    def end(self, run: Run) -> None:
        """The last word, where the line on a terminal would stay unfinished."""
        if self._is_line_open:
            self._write(self._how_far(run), ends_line=True)

    def _how_far(self, run: Run) -> str:
        removed, expected = run.removed.total(), self.expected.total()
        # What is removed may be more than there was at the start: errors arrive meanwhile.
        percent = 100 if run.task is None else min(99, 100 * removed // max(expected, removed, 1))
        rate = round(removed / max(time.monotonic() - self.began, 0.001))
        what = "" if run.task is None else f", {words_of(run.task, self.policy)}"
        return f"{percent:3} %  {removed:,} of {max(expected, removed):,} rows, {rate:,}/s{what}"

    def _write(self, line: str, *, ends_line: bool = False) -> None:
        is_terminal = self.stream.isatty()
        self._is_line_open = is_terminal and not ends_line
        start = "\r\x1b[K" if is_terminal else ""
        self.stream.write(f"{start}{line}{'' if self._is_line_open else chr(10)}")
        self.stream.flush()
