"""
The stop of a program in good order: no new requests, those under way are answered, then what the program asked for.

A server stops by itself when it is asked to, and is only helped (`_patch_server`). A program that has no handler
for the signal would end in the middle of whatever it does; `end` gives it the time, and then lets the same
signal end it. What waits, waits in a thread: a handler interrupts the program anywhere, with any lock held.
"""

from __future__ import annotations

import inspect
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tocsin import clock, requests
from tocsin.contained import contained
from tocsin.instrumentation import context, ends, late, signals, state
from tocsin.instrumentation.capture import Capture
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.patches import Layer, Patches
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity

# asyncio is loaded where a loop runs or is about to: a program without any would wait 20 ms for it.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    import asyncio

MECHANISM: Final = "on_shutdown"
CALLBACK_TIMEOUT_S: Final = 10.0

_HOLD_S = 2.0
_POLL_S = 0.02
_LOOK_S = 0.005
_STUCK_S = 1.0
_LEAST_S = 0.05

Callback = TypeVar("Callback", bound=Callable[[], object])


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    """What a program wants done at its end."""

    call: Callable[[], object]
    timeout_s: float
    loop: asyncio.AbstractEventLoop | None  # in which it was wished for

    @property
    def name(self) -> str:
        return str(getattr(self.call, "__qualname__", None) or type(self.call).__qualname__)


_wishes: list[_Wish] = []
_inherited: list[_Wish] = []
_ending: _Ending | None = None
_is_asked_to_stop = False
_is_exiting = False  # the interpreter is
_asked: int | None = None  # the signal that came meanwhile
_has_waited = False
"""Whether a server has answered what was under way, or has cut it off; nobody waits for it again."""
_most_s: float | None = None
_close: Callable[[], None] = lambda: None  # noqa: E731


def on_shutdown(callback: Callback, *, timeout_s: float = CALLBACK_TIMEOUT_S) -> Callback:
    """
    Have something done when the program stops: ``tocsin.on_shutdown(close_redis)``, or as a decorator.

    The callbacks run once, the last one first, when the requests under way are answered and the application's
    own lifespan is over; at the latest when the event loop that they were given in is closed, or the
    interpreter ends. One that raises, or takes longer than its time, is recorded as an error, and the next
    one runs. A forked process has none of its parent's, but for the workers of gunicorn.

    Args:
        callback: takes nothing. What a coroutine function does runs in the program's own event loop where one
            runs, everything else in a thread.
        timeout_s: the most that it may take.

    Returns:
        The callback itself.
    """
    _wishes.append(_Wish(callback, timeout_s, context.running_loop()))
    return callback


def install(close: Callable[[], None]) -> None:
    """
    See to the end of this process; harmless when called twice.

    Args:
        close: stores what is left, within a bound; the last thing that is done.
    """
    global _close
    _close = close
    signals.install(_note_stop, end)
    after_import("asyncio", _patch_asyncio)
    after_import("uvloop", _patch_uvloop)
    after_import("uvicorn.server", _patch_server)


def uninstall() -> None:
    """Put back what was found, where nobody has wrapped it since."""
    signals.uninstall()
    _patches.uninstall()


def begin_anew() -> None:
    """In a forked process, which nobody has asked to stop yet."""
    global _ending, _has_waited, _is_asked_to_stop, _is_exiting, _asked
    _ending, _has_waited, _is_asked_to_stop, _is_exiting, _asked = None, False, False, False, None
    _inherited[:] = _wishes
    _wishes.clear()


def live_on(timeout_s: float | None) -> None:
    """In a forked process that is a worker: its callbacks are its own, and who started it gives it so much time."""
    global _most_s
    _wishes[:0], _inherited[:] = _inherited, []
    _most_s = timeout_s


def at_exit() -> None:
    """The program has come to its end by itself: do what is left; and if a signal was about to end it, it does."""
    global _is_exiting
    ending = _ending
    if ending is not None:
        ending.hurry()
        ending.wait(_in_all_s())
        _die(ending.number)
    _is_exiting = True
    try:
        with contained("running what was left for the shutdown"):
            _run_wishes()
    finally:
        with contained("storing what is left"):
            _close()
        _is_exiting = False
        if _asked is not None:
            _die(_asked)


def timeout_s() -> float:
    """How long requests under way are waited for."""
    wanted = state.settings.shutdown_timeout_s if state.settings is not None else 0.0
    return wanted if _most_s is None else max(0.0, min(wanted, _most_s))


def _in_all_s() -> float:
    return timeout_s() + sum(one.timeout_s for one in _wishes) + _HOLD_S


def _note_stop(is_server: bool) -> None:
    """Somebody has asked for the end. In a signal handler: it stores a few words, and waits for nothing."""
    global _is_asked_to_stop
    _is_asked_to_stop = True
    if is_server:
        requests.stop()
    capture = state.current
    if isinstance(capture, Capture):
        capture.spool.life.note_stopping(clock.now_ns())
        capture.drain.wake()


# Callbacks


def _never() -> bool:
    return False


async def _run_wishes_in_loop(is_forced: Callable[[], bool] = _never, of: object = None) -> None:
    """
    In the program's own loop, until somebody forces the end.

    Args:
        of: only what was wished for in this loop.
    """
    import asyncio

    while (wish := _take(of)) is not None and not is_forced():
        busy: list[int] = []
        work = asyncio.ensure_future(_fulfil(wish, busy))
        until = time.monotonic() + wish.timeout_s
        while not work.done() and time.monotonic() < until and not is_forced():
            await asyncio.wait({work}, timeout=min(0.1, max(0.0, until - time.monotonic())))
        if work.done():
            _tell_failure(work)
            continue
        if not is_forced():
            _tell_hanging(wish, late.frames_of_thread(busy[0]) if busy else late.frames_of_awaited(work))
        work.cancel()
        await asyncio.wait({work}, timeout=_LEAST_S)


def _take(of: object) -> _Wish | None:
    """The last wish, which is then nobody else's."""
    for wish in reversed(_wishes):
        if of is None or wish.loop is of:
            with suppress(ValueError):  # another thread has taken it
                _wishes.remove(wish)
                return wish
    return None


async def _fulfil(wish: _Wish, busy: list[int]) -> None:
    """
    Do one thing that was wished for.

    Args:
        busy: holds the number of the thread while one works for it.
    """
    import asyncio

    if inspect.iscoroutinefunction(wish.call):
        await wish.call()
        return
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[object] = loop.create_future()

    def give(set_it: Callable[[Any], None], found: Any) -> None:
        if not answer.done():
            set_it(found)

    def work() -> None:
        busy.append(threading.get_ident())
        try:
            found = wish.call()
        except BaseException as exc:
            loop.call_soon_threadsafe(give, answer.set_exception, _raisable(exc))
        else:
            loop.call_soon_threadsafe(give, answer.set_result, found)
        finally:
            busy.clear()

    threading.Thread(target=work, name=f"shutdown {wish.name}", daemon=True).start()
    found = await answer
    if isinstance(found, Awaitable):
        await found


def _raisable(exc: BaseException) -> BaseException:
    """A future takes no `StopIteration`."""
    if isinstance(exc, StopIteration):
        wrapped = RuntimeError("a callback raised StopIteration")
        wrapped.__cause__ = exc
        return wrapped
    return exc


def _tell_failure(work: asyncio.Future[None]) -> None:
    exc = None if work.cancelled() else work.exception()
    if exc is not None:
        _tell(exc)


def _run_wishes() -> None:
    """Where no loop runs, each in a thread of its own."""
    while (wish := _take(None)) is not None:
        thread = threading.Thread(target=_fulfil_in_thread, args=(wish,), name=f"shutdown {wish.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, and starts no more threads
            _fulfil_in_thread(wish)
            continue
        thread.join(wish.timeout_s)
        if thread.is_alive() and thread.ident is not None:
            _tell_hanging(wish, late.frames_of_thread(thread.ident))


def _fulfil_in_thread(wish: _Wish) -> None:
    async def finish(work: Awaitable[object]) -> None:
        await work

    try:
        found = wish.call()
        if isinstance(found, Awaitable):
            import asyncio

            asyncio.run(finish(found))
    except BaseException as exc:
        _tell(exc)


def _tell(exc: BaseException) -> None:
    if state.current is not None:
        state.current.see(Sighting(exc, mechanism=MECHANISM, handled=False, severity=Severity.HIGH))


def _tell_hanging(wish: _Wish, frames: Iterable[Any]) -> None:
    if state.current is None:
        return
    with contained("naming a callback that hangs"):
        text = f"{wish.name} took longer than its {wish.timeout_s:g} s in the shutdown"
        seen = Sighting(text, mechanism=MECHANISM, handled=False, severity=Severity.HIGH, place=wish.name)
        seen.stack = late.stack_text(frames)
        state.current.see(seen)


# A program without a handler


def end(number: int, frame: FrameType | None) -> None:
    """
    Handle a signal that would end the program: give it the time that a stop may take, then let it end it.

    It comes again when the rest can be done without the main thread, which is then held here: it shall not go
    on with what the callbacks take away from it.
    """
    global _ending, _asked
    if _is_exiting:
        _note_stop(True)
        _asked = number
        return
    if not isinstance(state.current, Capture) and _ending is None:
        _die(number)
    if _ending is None:
        _note_stop(True)
        _ending = _Ending(number, context.running_loop())
        _ending.start()
    if _ending.is_held():
        _ending.wait(_HOLD_S)
    if _ending.is_over:
        _die(number)


class _Ending:
    """The stop of a program that has no handler for the signal, seen to by a thread."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop | None) -> None:
        self.number = number
        self.is_over = False
        self._loop = loop if _wishes else None  # it is for them alone
        self._until = time.monotonic() + timeout_s()
        self._is_waiting = not _has_waited
        self._is_closing = False

    def start(self) -> None:
        """Begin; where no thread can be started any more, it is over at once."""
        try:
            threading._start_new_thread(self._run, ())  # type: ignore[attr-defined]
        except RuntimeError:
            self.is_over = True

    def wait(self, timeout_s: float) -> None:
        """Wait until it is over; by looking again and again, since a lock could be held by who is interrupted here."""
        until = time.monotonic() + timeout_s
        while not self.is_over and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def hurry(self) -> None:
        """Nobody answers requests any more."""
        self._is_waiting = False

    def is_held(self) -> bool:
        """Whether the main thread has nothing more to do."""
        return self._is_closing or (self._loop is None and not self._has_requests())

    def _has_requests(self) -> bool:
        return self._is_waiting and requests.active() > 0

    def _run(self) -> None:
        with contained("shutting down"):
            while self._has_requests() and time.monotonic() < self._until:
                time.sleep(_POLL_S)
            if self._has_requests():
                late.name_late_requests()
            self._is_waiting = False
            self._callbacks()
        self._is_closing = True
        self._call_main_thread()
        with contained("storing what is left"):
            _close()
        self.is_over = True
        self._call_main_thread()
        time.sleep(_STUCK_S)
        _force(self.number)  # the main thread is in a call that no signal ends

    def _callbacks(self) -> None:
        if self._loop is not None and not self._loop.is_closed() and _wishes:
            import asyncio

            in_all_s = sum(one.timeout_s + 2 * _LEAST_S for one in _wishes)
            work = asyncio.run_coroutine_threadsafe(_run_wishes_in_loop(), self._loop)
            try:
                work.result(in_all_s)
            except TimeoutError:
                work.cancel()
                _tell_busy(_wishes)
            except Exception:  # the loop was closed meanwhile
                _run_wishes()
            return
        if self._loop is None and _wishes:
            self._call_main_thread()  # to be held
        _run_wishes()

    def _call_main_thread(self) -> None:
        if signals.is_ours(self.number):
            os.kill(os.getpid(), self.number)


def _tell_busy(left: list[_Wish]) -> None:
    """The loop does not come round: where it is, and what it kept from running."""
    wishes = list(left)
    left.clear()
    for wish in reversed(wishes):
        _tell_hanging(wish, late.frames_of_thread(threading.main_thread().ident or 0))


def _die(number: int) -> None:
    """In the main thread: end as without us; who watches the end need not wonder, whoever has sent the signal."""
    if ends.watched_by:
        ends.note_told()
    signals.default(number)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container is not ended by a signal


def _force(number: int) -> None:
    """From another thread, where Python lets nobody change a handler."""
    import ctypes  # dear, and as good as never

    with contained("ending the program"):
        ctypes.CDLL(None).signal(number, signal.SIG_DFL.value)
        os.kill(os.getpid(), number)


# A loop that is closed before the interpreter ends


def _closing(layer: Layer) -> Callable[..., Any]:
    def close(self: Any) -> None:
        try:
            with contained("running what was left for the shutdown"):
                if _wishes and not self.is_closed() and not self.is_running():
                    is_end = _is_asked_to_stop and threading.current_thread() is threading.main_thread()
                    if is_end or any(wish.loop is self for wish in _wishes):
                        self.run_until_complete(_run_wishes_in_loop(of=None if is_end else self))
        finally:
            layer.before(self)

    return close


_patches: Final = Patches()


def _patch_asyncio(module: ModuleType) -> None:
    _patches.install(module.SelectorEventLoop, "close", _closing)


def _patch_uvloop(module: ModuleType) -> None:
    _patches.install(module.Loop, "close", _closing)


# uvicorn, by itself and as a worker of gunicorn


def _patch_server(module: ModuleType) -> None:
    """Give its stop a bound, name the requests that it cuts off, and run the callbacks behind the lifespan's."""
    for name, make in (("shutdown", _stopping), ("_wait_tasks_to_complete", _waiting)):
        if hasattr(module.Server, name):  # earlier versions do not wait in a function of its own
            _patches.install(module.Server, name, make)


def _stopping(layer: Layer) -> Callable[..., Any]:
    async def shutdown(self: Any, *args: Any, **kwargs: Any) -> None:
        global _has_waited
        is_end = False
        with contained("beginning a server's stop"):
            is_end = state.current is not None and (requests.is_stopping or _has_served_enough(self))
            if is_end:
                _note_stop(True)
                if self.config.timeout_graceful_shutdown is None:
                    self.config.timeout_graceful_shutdown = max(_LEAST_S, timeout_s())
        await layer.before(self, *args, **kwargs)
        if is_end:
            _has_waited = True
            with contained("running what was left for the shutdown"):
                await _run_wishes_in_loop(lambda: bool(self.force_exit))
            if self.force_exit:
                _wishes.clear()

    return shutdown


def _waiting(layer: Layer) -> Callable[..., Any]:
    import asyncio

    async def _wait_tasks_to_complete(self: Any) -> None:
        try:
            await layer.before(self)
        except asyncio.CancelledError:  # the time is over: the requests are cut off next
            with contained("naming requests"):
                late.name_late_requests()
            raise

    return _wait_tasks_to_complete


def _has_served_enough(server: Any) -> bool:
    """Whether it stops since it was told to after so many requests: that is the end of its process too."""
    limit = server.limit_max_requests
    return limit is not None and server.server_state.total_requests >= limit
