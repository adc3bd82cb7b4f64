"""The requests that a stop did not wait for: which they are, how old, and where each of them was just then."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Final

from tocsin import requests
from tocsin.contained import contained
from tocsin.instrumentation import context, state
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity
from tocsin.requests import UnderWay

MECHANISM: Final = "shutdown"
MOST: Final = 20
"""How many are named; of the rest their number."""

_DEEPEST = 100
_WAITING = ("get_coro", "cr_frame", "ag_frame", "gi_frame")


def name_late_requests() -> None:
    """One error for each request that is under way, the oldest first; it is about to be cut off."""
    late = requests.under_way()
    for one in late[:MOST]:
        with contained("naming a request"):
            contextvars.copy_context().run(_name, one)
    if len(late) > MOST and state.current is not None:
        text = f"{len(late) - MOST} further requests were cut off when the stop ran out of time"
        state.current.see(_late(text, place="further requests"))


def _name(one: UnderWay) -> None:
    if state.current is None:
        return
    context.current_scope.set(one.request)
    place = context.place_of(one.request)
    seen = _late(f"{place} was cut off when the stop ran out of time", place=place)
    seen.stack = stack_text(_frames_of(one))
    seen.facts = {"age_s": round(time.monotonic() - one.began, 3)}
    state.current.see(seen)


def stack_text(frames: Iterable[traceback.FrameSummary]) -> str:
    """Frames as a traceback shows them."""
    return "".join(traceback.StackSummary.from_list(list(frames)).format())


def _late(text: str, *, place: str) -> Sighting:
    return Sighting(text, mechanism=MECHANISM, handled=False, severity=Severity.MEDIUM, category="api", place=place)


def _frames_of(one: UnderWay) -> Iterator[traceback.FrameSummary]:
    """Where a request is, the outermost first; through what it waits for into the thread that works for it."""
    if isinstance(one.work, int):
        yield from frames_of_thread(one.work)
        return
    yield from frames_of_awaited(one.work)
    root = context.root_of(one.request)
    for task in _tasks_of(root, one.work):
        yield from frames_of_awaited(task)
    for thread_id, frame in sys._current_frames().items():
        if thread_id != threading.get_ident() and _works_for(root, frame):
            yield from _summaries(frame)


def _tasks_of(root: Any, work: object) -> Iterator[Any]:
    """Tasks that the request has started in this thread's loop: a framework streams its answer in one."""
    loop = context.running_loop()
    if loop is None:
        return
    for task in sys.modules["asyncio"].all_tasks(loop):
        around = task.get_context() if hasattr(task, "get_context") else getattr(task, "_tocsin_context", None)
        scope = around.get(context.current_scope) if around is not None else None
        is_own = any(one is work for one in _chain_of(task))
        if scope is not None and not is_own and context.root_of(scope) is root and task is not context.current_task():
            yield task


def frames_of_thread(thread_id: int) -> Iterator[traceback.FrameSummary]:
    """Where a thread is; nothing when it has ended."""
    frame = sys._current_frames().get(thread_id)
    if frame is not None:
        yield from _summaries(frame)


def frames_of_awaited(awaited: Any) -> Iterator[traceback.FrameSummary]:
    """Where a coroutine is, and what it awaits in turn, across tasks."""
    for one in _chain_of(awaited):
        for name in ("cr_frame", "gi_frame", "ag_frame"):
            if (frame := getattr(one, name, None)) is not None:
                yield _summary(frame)


def _chain_of(awaited: Any) -> Iterator[Any]:
    for _ in range(_DEEPEST):
        if awaited is None:
            return
        yield awaited
        awaited = _next(awaited)


def _next(awaited: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if (found := getattr(awaited, name, None)) is not None:
            return found
    if hasattr(awaited, "get_coro"):
        return awaited.get_coro()
    if type(awaited).__name__ in ("FutureIter", "async_generator_asend", "async_generator_athrow", "coroutine_wrapper"):
        # They hold what they wait for, and have no word for it.
        return next((held for held in gc.get_referents(awaited) if any(hasattr(held, name) for name in _WAITING)), None)
    return None


def _works_for(root: Any, frame: FrameType | None) -> bool:
    """Whether a thread runs something in the context of a request: as anyio keeps it, and as we carry it."""
    for _ in range(_DEEPEST):
        if frame is None:
            return False
        if frame.f_code.co_name in ("run", "_run_with"):
            carried = frame.f_locals.get("context"), frame.f_locals.get("carried")
            if isinstance(carried[0], contextvars.Context):
                scope = carried[0].get(context.current_scope)
            else:
                scope = carried[1][0] if isinstance(carried[1], tuple) and carried[1] else None
            if scope is not None and context.root_of(scope) is root:
                return True
        frame = frame.f_back
    return False


def _summaries(frame: FrameType | None) -> Iterator[traceback.FrameSummary]:
    found: list[traceback.FrameSummary] = []
    while frame is not None and len(found) < _DEEPEST:
        found.append(_summary(frame))
        frame = frame.f_back
    yield from reversed(found)


def _summary(frame: FrameType) -> traceback.FrameSummary:
    code = frame.f_code
    return traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name)
