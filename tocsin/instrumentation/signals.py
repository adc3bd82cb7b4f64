"""
A stop that is asked for by a signal is noted at once, whoever handles the signal.

Python runs handlers between two steps of the main thread, so nothing here takes a lock, allocates much, or
waits. A program sees its own handlers as if nobody stood before them: `signal.signal` and `signal.getsignal`
give back what was given to them.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from tocsin.contained import contained
from tocsin.instrumentation.patches import Layer, Patch

ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a program which has no handler for them; from Ctrl-C Python makes an exception by itself."""

NOTED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that may ask a program with a handler to stop; SIGHUP asks most to read their settings again."""

_SERVERS: Final = {"uvicorn", "gunicorn", "uvicorn_worker"}
_STOP_ON_INTERRUPT: Final = _SERVERS | {"aiohttp", "asyncio", "celery", "hypercorn", "rq", "uvloop"}
_STOP_ON_QUIT: Final = {"gunicorn", "uvicorn_worker", "celery"}

Handler = Callable[[int, FrameType | None], Any]
Noted = Callable[[bool], None]

# As they are without us.
_set: Final[Callable[[int, Any], Any]] = signal.signal
_get: Final[Callable[[int], Any]] = signal.getsignal

_note: Noted | None = None
_end: Handler | None = None


def install(note: Noted, end: Handler) -> None:
    """
    See the signals that ask for a stop; harmless when called twice.

    Handlers can be set in the main thread only: started in another one, tocsin sees those that are set later.

    Args:
        note: told that a stop was asked for, and whether it is a server that stops answering; called by a handler.
        end: handles a signal that would end the program.
    """
    global _note, _end
    _note, _end = note, end
    for patch in _PATCHES:
        patch.install()
    if threading.current_thread() is threading.main_thread():
        for number in {*ENDING, *NOTED}:
            found = _get(number)
            if found is not None and _watched(number, found) is not found:  # None: not set from Python
                _set(number, _watched(number, found))


def uninstall() -> None:
    """Put back what was found, where nobody has wrapped it since, and the handlers as their programs gave them."""
    global _note
    _note = None
    for patch in _PATCHES:
        patch.uninstall()
    if threading.current_thread() is threading.main_thread():
        for number in {*ENDING, *NOTED}:
            handler = _get(number)
            if isinstance(handler, _Seen | _End):
                _set(number, _shown(handler))


def is_ours(number: int) -> bool:
    """Whether the program has no handler of its own for a signal, and would be ended by it."""
    return isinstance(_get(number), _End)


def default(number: int) -> None:
    """Have a signal end the program from now on; in the main thread only."""
    _set(number, signal.SIG_DFL)


class _Seen:
    """A program's own handler, called after the stop was noted."""

    __slots__ = ("handler",)

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        if _note is not None:
            with contained("noting a stop"):
                home = _home_of(self.handler)
                if _asks_to_stop(number, home):
                    _note(home in _SERVERS)
        return self.handler(number, frame)


class _End:
    """Stands where the program left it to the system to end it."""

    __slots__ = ()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _end is not None:
            _end(number, frame)


_ENDS: Final = _End()


def _asks_to_stop(number: int, home: str) -> bool:
    """A SIGTERM always does; what else a handler may be for depends on whose it is."""
    if number == signal.SIGTERM:
        return True
    if number == signal.SIGINT:
        return home in _STOP_ON_INTERRUPT
    return home in _STOP_ON_QUIT or (home == "asyncio" and "uvicorn_worker" in sys.modules)


def _home_of(handler: Any) -> str:
    """The package that a handler is from."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return str(getattr(handler, "__module__", None) or "").partition(".")[0]


def _shown(handler: Any) -> Any:
    """A handler as its program gave it."""
    if isinstance(handler, _Seen):
        return handler.handler
    return signal.SIG_DFL if isinstance(handler, _End) else handler


def _watched(number: int, handler: Any) -> Any:
    """What is set for it."""
    if handler == signal.SIG_DFL:
        return _ENDS if number in ENDING else handler
    if handler == signal.SIG_IGN or handler is signal.default_int_handler or not callable(handler):
        return handler
    return _Seen(handler) if number in NOTED and not isinstance(handler, _Seen | _End) else handler


def _setting(layer: Layer) -> Callable[..., Any]:
    def set_signal(signalnum: Any, handler: Any) -> Any:
        return _shown(layer.before(signalnum, _watched(signalnum, handler) if layer.is_on else handler))

    return set_signal


def _asking(layer: Layer) -> Callable[..., Any]:
    def get_signal(signalnum: Any) -> Any:
        return _shown(layer.before(signalnum))

    return get_signal


_PATCHES: Final = (Patch(signal, "signal", _setting), Patch(signal, "getsignal", _asking))
