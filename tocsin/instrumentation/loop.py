"""
Event loops that do not come round: one error for each time, with the stack that blocks.

From the thread `tocsin-pulse` each running loop is asked to answer, and asked anew when it has. Nothing of this
stands in a loop's list of timers or tasks, and a loop that ends while it is asked ends as it would.

What counts is only the time in which this process ran: where the pulse itself came late, the process was stopped,
starved of its processor, or one call into C kept the interpreter for itself, and nobody can tell who blocked whom.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from tocsin import requests, semconv
from tocsin.contained import contained
from tocsin.exporter.spool import Spool
from tocsin.instrumentation import context, crumbs, stacks, state
from tocsin.instrumentation.patches import Layer
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity
from tocsin.text import clean

MECHANISM: Final = "event_loop"

LAG_S: Final = 60.0
"""Over how long the longest lag is told of a process."""

_LONGEST_PAUSE_S: Final = 0.5
_SHORTEST_PAUSE_S: Final = 0.05
_BUCKET_S: Final = 10.0
_MOST_WAITING: Final = 10
_MOST_FRAMES: Final = 5_000

# Who stands still in the middle of a loop with good reason: debuggers, and what runs what a person has typed.
_PATIENT: Final = frozenset({"pdb", "bdb", "ipdb", "pudb", "pydevd", "debugpy", "ipykernel", "IPython", "code"})
_OF_LOOPS: Final = frozenset(
    {
        ("asyncio.base_events", "run_forever"),
        ("asyncio.base_events", "_run_once"),
        ("asyncio.events", "_run"),
        ("asyncio.runners", "run"),
    }
)
_RUNNING: Final = frozenset({"run_forever", "run_until_complete"})


class EventLoopBlocked(Exception):
    """Never raised: the name under which it is recorded."""


EventLoopBlocked.__module__ = "tocsin"


class _Run:
    """One run of a loop in its thread."""

    __slots__ = ("answered_at", "asked_at", "counted_s", "error_id", "has_answered", "last", "loop", "thread_id")

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.thread_id = threading.get_ident()
        self.asked_at = 0.0  #                   monotonic; 0.0: not yet
        self.answered_at = 0.0
        self.counted_s = 0.0  #                  of its time since, in which this process ran
        self.has_answered = False  #             ever: until then a program starts
        self.last: tuple[int, ...] = ()  #       what blocked at the last look
        self.error_id: str | None = None  #      "" where it is known, and cannot be told more of

    def ask(self, now: float) -> None:
        self.asked_at, self.answered_at, self.counted_s, self.last, self.error_id = now, 0.0, 0.0, (), None
        self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self.answered_at = time.monotonic()


_runs: dict[int, _Run] = {}  # by thread
_ended: deque[tuple[str, float]] = deque(maxlen=20)  # errors of runs that are over, and for how long they blocked


def running(layer: Layer) -> Callable[..., Any]:
    """Around `run_forever`, by which every loop runs: it is one that is looked at."""

    def run_forever(self: Any) -> Any:
        run = None
        if layer.is_on:
            with contained("beginning to watch an event loop"):
                run = _begin(self)
        try:
            return layer.before(self)
        finally:
            if run is not None:
                _end(run)

    return run_forever


def find() -> None:
    """Look also at the loop that runs in this thread, where tocsin was started in it."""
    loop = context.running_loop()
    if loop is not None:
        _begin(loop)


def forget() -> None:
    """No loop is looked at any more; those of a forked process are its parent's."""
    _runs.clear()
    _ended.clear()


def _begin(loop: Any) -> _Run | None:
    """None where it is looked at already: a loop runs by way of its base class."""
    known = _runs.get(threading.get_ident())
    if known is not None and known.loop is loop:
        return None
    run = _runs[threading.get_ident()] = _Run(loop)
    return run


def _end(run: _Run) -> None:
    if _runs.get(run.thread_id) is run:
        del _runs[run.thread_id]
    if run.error_id:
        _ended.append((run.error_id, time.monotonic() - run.asked_at))


class Watch:
    """
    Looks at the running loops; `look` is called by the pulse.

    Args:
        blocked_s: for how long a loop must not have answered; more than 0.
    """

    def __init__(self, spool: Spool, blocked_s: float) -> None:
        self._spool = spool
        self._blocked_s = blocked_s
        self._pause_s = min(max(blocked_s / 4, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
        self._looked_at = time.monotonic()
        self._lags: deque[tuple[int, float]] = deque()  # the longest of each ten seconds

    def look(self) -> float | None:
        """Ask, hear, and tell; after how many seconds to look again, None where no loop runs."""
        now = time.monotonic()
        counted_s = self._counted(now - self._looked_at)
        self._looked_at = now
        longest_s = 0.0
        for run in list(_runs.values()):
            with contained("looking at an event loop"):
                longest_s = max(longest_s, self._look_at(run, now, counted_s))
        while _ended:
            _amend(*_ended.popleft())
        if _runs or self._lags:
            self._note_lag(longest_s, now)
        return self._pause_s if _runs else None

    def _counted(self, gap_s: float) -> float:
        """How much of the time since the last look counts: less, the later it is; none if by a whole pause."""
        late_s = gap_s - self._pause_s
        return gap_s if late_s <= 0 else max(self._pause_s - late_s, 0.0)

    def _look_at(self, run: _Run, now: float, counted_s: float) -> float:
        """How long it keeps others waiting."""
        if not run.loop.is_running():
            _end(run)
            return 0.0
        if run.asked_at == 0.0:
            run.ask(now)
            return 0.0
        run.counted_s += counted_s
        if not run.answered_at:
            if run.error_id is None and run.has_answered and not requests.is_stopping:
                self._judge(run)
            return run.counted_s
        lag_s = run.answered_at - run.asked_at
        run.has_answered = True
        if run.error_id:
            _amend(run.error_id, lag_s)
        lag_s = min(lag_s, run.counted_s)
        run.ask(now)
        return lag_s

    def _judge(self, run: _Run) -> None:
        """Tell what blocks, once it is there at two looks; a loop that only has much to do is nobody's fault."""
        if run.counted_s < self._blocked_s - self._pause_s:
            return
        frames = _blocking(run.thread_id)
        if not frames:
            run.last = ()
            return
        culprit = _culprit_of(frames)
        base = frames[-1]
        seen = id(base), id(base.f_code), id(culprit.f_code)
        before, run.last = run.last, seen
        is_same = bool(before) and (before[:2] == seen[:2] or before[2] == seen[2])
        if is_same and run.counted_s >= self._blocked_s and not run.answered_at:
            run.error_id = ""
            run.error_id = _tell(run, frames, culprit) or ""

    def _note_lag(self, lag_s: float, now: float) -> None:
        bucket = int(now / _BUCKET_S)
        lags = self._lags
        if lags and lags[-1][0] == bucket:
            lag_s = max(lag_s, lags.pop()[1])
        lags.append((bucket, lag_s))
        while lags[0][0] <= bucket - LAG_S / _BUCKET_S:
            lags.popleft()
        self._spool.life.note_loop_lag(max(lag_s for _, lag_s in lags) * 1000)
        if not _runs and lags[0][1] == lags[-1][1] == 0.0:
            lags.clear()


# What blocks


def _blocking(thread_id: int) -> list[FrameType]:
    """The frames above the loop's own, innermost first; none where it waits, or stands still with good reason."""
    found: list[FrameType] = []
    frame = sys._current_frames().get(thread_id)
    while frame is not None and len(found) < _MOST_FRAMES:
        if _is_of_loop(frame):
            if not found and frame.f_code.co_name == "_run":  # a callback that is no Python
                found.append(frame)
            break
        found.append(frame)
        frame = frame.f_back
    else:
        found = _above_caller(found)
    if not found or _module(found[-1]) == "selectors" or any(map(_is_patient, found)):
        return []
    while len(found) > 1 and _module(found[-1]).startswith("asyncio."):
        found.pop()
    return found


def _is_of_loop(frame: FrameType) -> bool:
    code = frame.f_code
    return code is _RUN_FOREVER or (_module(frame), code.co_name) in _OF_LOOPS


def _above_caller(found: list[FrameType]) -> list[FrameType]:
    """Of a loop without frames, in which tocsin was started: what is above the last who has called it."""
    for number, frame in enumerate(found):
        if not _RUNNING.isdisjoint(frame.f_code.co_names):
            return found[:number]
    return []


def _is_patient(frame: FrameType) -> bool:
    module = _module(frame)
    return frame.f_trace is not None or module == "asyncio.__main__" or module.partition(".")[0] in _PATIENT


def _module(frame: FrameType) -> str:
    name = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else ""


def _culprit_of(frames: Sequence[FrameType]) -> FrameType:
    """The innermost of the team's own; the innermost of all where none is."""
    return next((frame for frame in frames if stacks.is_app_file(frame.f_code.co_filename)), frames[0])


def _traceback_of(frames: Sequence[FrameType]) -> TracebackType | None:
    """As if what runs there had raised; the frames go on meanwhile, so that each is asked once where it is."""
    tb = None
    for frame in frames:
        last = frame.f_lasti
        tb = TracebackType(tb, frame, last, _line(frame.f_code, last))
    return tb


def _line(code: CodeType, last: int) -> int:
    line = next(islice(code.co_positions(), max(last, 0) // 2, None), (None,))[0]
    return line or code.co_firstlineno


# What is told of it


def _tell(run: _Run, frames: Sequence[FrameType], culprit: FrameType) -> str | None:
    """One error, as of the request and the task that block; None where it was only counted."""
    capture = state.current
    if capture is None:
        return None
    task = sys.modules["asyncio"].current_task(run.loop)
    under_way = requests.under_way()
    own = _request_of(frames, task, under_way)
    thread = threading._active.get(run.thread_id)  # type: ignore[attr-defined]
    seen = Sighting(
        EventLoopBlocked(f"event loop blocked by {_module(culprit)} in {culprit.f_code.co_qualname}"),
        mechanism=MECHANISM,
        handled=False,
        severity=Severity.HIGH,
        tb=_traceback_of(frames),
    )
    seen.facts = {"blocked_over_s": round(run.counted_s, 1)} | _waiting(under_way, own)
    seen.attributes = {
        semconv.THREAD_NAME: clean(str(thread.name) if thread is not None else "unknown", 100),
        semconv.THREAD_ID: run.thread_id,
    }
    if task is not None:
        seen.attributes |= {semconv.TASK_NAME: clean(str(task.get_name()), 100)}

    def see() -> str | None:
        context.current_scope.set(own)
        return capture.see(seen)

    with crumbs.of_task(task):
        error_id = contextvars.copy_context().run(see)
    return None if seen.is_counted else error_id


def _request_of(frames: Sequence[FrameType], task: Any, under_way: Sequence[requests.UnderWay]) -> Any:
    """The scope of the request in which the loop stands still; None outside of any."""
    standing = set(map(id, frames))
    for one in under_way:
        if id(getattr(one.work, "cr_frame", None)) in standing:
            return one.request
    around = task.get_context() if hasattr(task, "get_context") else getattr(task, "_tocsin_context", None)
    return around.get(context.current_scope) if isinstance(around, contextvars.Context) else None


def _waiting(under_way: Sequence[requests.UnderWay], own: Any) -> dict[str, Any]:
    """The requests that wait for it, the oldest first."""
    now = time.monotonic()
    root = context.root_of(own) if own is not None else None
    others = [one for one in under_way if one.request is not own and one.request is not root]
    if not others:
        return {}
    named = [f"{context.place_of(one.request)} ({now - one.began:.1f} s)" for one in others[:_MOST_WAITING]]
    return {"waiting": named, "waiting_requests": len(others)}


def _amend(error_id: str, blocked_s: float) -> None:
    """It came round again: for how long it was blocked, as it looked from outside."""
    capture = state.current
    if capture is not None and error_id:
        capture.tell({"kind": "amend", "error_id": error_id, "context": {"blocked_s": round(blocked_s, 3)}})


_RUN_FOREVER: Final = next(one for one in running.__code__.co_consts if isinstance(one, CodeType))
