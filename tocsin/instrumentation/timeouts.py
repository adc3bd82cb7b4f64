"""
A function that takes too long is not waited for.

A coroutine is cancelled. A thread cannot be ended from outside: it goes on, and its result is nobody's; so there
are only so many of them, beyond which a function that still hangs is not begun once more.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from _thread import allocate_lock
from collections.abc import Awaitable, Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Final, TypeVar

from tocsin.contained import contained
from tocsin.instrumentation.tries import Try

T = TypeVar("T")

MOST_HANGING: Final = 20
"""Threads of one function that nobody waits for any more."""

_DEEPEST: Final = 200


async def awaited(awaitable: Awaitable[T], timeout_s: float, name: str) -> T:
    """
    What is awaited, within its time.

    Raises:
        TimeoutError: it was cancelled; the stack says where it hung.
    """
    import asyncio  # noqa: PLC0415  (loaded by whoever runs a loop)

    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await awaitable
    except TimeoutError as exc:
        cancelled = exc.__cause__ or exc.__context__
        if not limit.expired() or not isinstance(cancelled, asyncio.CancelledError):
            raise  # its own
        hung = cancelled.__traceback__ and cancelled.__traceback__.tb_next
    finally:
        cancelled = None  # it knows this frame
    raise TimeoutError(_too_long(name, timeout_s)).with_traceback(hung)


class Threads:
    """The threads in which one function runs that has a time-out."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left: set[threading.Thread] = set()  # those that nobody waits for

    def call(
        self, function: Callable[..., T], args: tuple[Any, ...], kwargs: Mapping[str, Any], timeout_s: float, one: Try
    ) -> T:
        """
        What a function gives, within its time, in a thread of its own and with the caller's context variables.

        Raises:
            TimeoutError: it has not come back, and goes on, or too many before it do; the stack says where it hangs.
        """
        for thread in [*self._left]:
            if not thread.is_alive():
                self._left.discard(thread)
        if len(self._left) >= MOST_HANGING:
            raise TimeoutError(f"{self._name} was not called: {len(self._left)} calls of it still hang")
        work = _Work(function, args, kwargs, one)
        worker = threading.Thread(
            target=contextvars.copy_context().run, args=(work.run,), name=f"protect {self._name}", daemon=True
        )
        worker.start()
        try:
            is_done = work.done.acquire(timeout=timeout_s)
        except BaseException:  # Ctrl-C, or a signal handler's own: nobody waits any more
            one.is_left = True
            self._left.add(worker)
            raise
        if not is_done:
            one.is_left = True  # from here on the thread sees to what it sees
            is_done = work.done.acquire(blocking=False)
        if is_done:
            return work.outcome()  # type: ignore[no-any-return]
        self._left.add(worker)
        raise TimeoutError(_too_long(self._name, timeout_s)).with_traceback(_traceback_of(worker))


class _Work:
    """One call of a function, and what has come of it."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], one: Try
    ) -> None:
        self.done = allocate_lock()
        self.done.acquire()
        self._call = (function, args, kwargs)
        self._one = one
        self._results: list[Any] = []
        self._failures: list[BaseException] = []

    def run(self) -> None:
        function, args, kwargs = self._call
        failure: BaseException | None = None
        try:
            self._results.append(function(*args, **kwargs))
        except BaseException as exc:
            failure = exc
            self._failures.append(exc)
        self.done.release()
        if self._one.is_left:
            self._one.settle(failure)
        failure = None  # it knows this frame

    def outcome(self) -> Any:
        if self._failures:
            raise self._failures.pop()  # the object itself; not kept here, since it knows who raises it
        return self._results.pop()


def _too_long(name: str, timeout_s: float) -> str:
    return f"{name} took longer than its {timeout_s:g} s"


def _traceback_of(thread: threading.Thread) -> TracebackType | None:
    """Where a thread is, as if it had raised there; from the function that it was started for."""
    found: TracebackType | None = None
    with contained("looking where a function hangs"):
        frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
        for _ in range(_DEEPEST):
            if frame is None or frame.f_code is _Work.run.__code__:
                break
            found = TracebackType(found, frame, max(frame.f_lasti, 0), frame.f_lineno or 0)
            frame = frame.f_back
    return found
