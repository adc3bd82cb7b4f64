"""Keep tocsin's own failures inside tocsin: counted, said now and then, never raised."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the one without enumerations, which cost 50 times as much
import opcode
import sys
import threading
import time
from collections import Counter
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from tocsin.text import clean, one_line

failures: Counter[str] = Counter()
"""How often tocsin itself failed, by what it was doing; health shows it."""

own_threads: set[int] = set()
"""Threads of tocsin itself: what goes wrong in them is never captured, or it would feed itself."""

_QUIET_S = 60.0
_last_said: dict[str, float] = {}


class contained:  # noqa: N801  (reads as a statement: `with contained("capture"):`)
    """
    Hold back an `Exception` that tocsin's own code raises where it meets the user's code.

    `KeyboardInterrupt`, `SystemExit`, cancellation and whatever a signal handler raises are not ours and pass.
    """

    __slots__ = ("doing",)

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: object) -> bool:
        if not isinstance(exc, Exception):
            return False
        try:
            if is_interrupt(exc):
                return False
            note(self.doing, exc)
        except RecursionError:  # not even that can be found out where the stack ends
            pass
        return True


def pass_on(problem: BaseException) -> None:
    """Raise what a signal handler has raised in the middle of our work: it is meant for the program."""
    if is_interrupt(problem):
        raise problem


def is_interrupt(exc: BaseException) -> bool:
    """
    Whether a signal handler raised an exception that we have caught.

    Handlers run in the main thread, between any two instructions: Ctrl-C, and time limits of job queues. An
    exception that foreign code raises by itself, such as a `__str__` that exits, is none.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return False
    handlers = _handlers()
    last = None
    tb = _traceback_of(exc)
    while tb is not None:
        if tb.tb_frame.f_code in handlers:
            return True
        last, tb = tb, tb.tb_next
    # The handler that Python brings is no function with a frame: no instruction has raised what it raises.
    return type(exc) is KeyboardInterrupt and last is not None and last.tb_frame.f_code.co_code[last.tb_lasti] != _RAISE


_RAISE: Final = opcode.opmap["RAISE_VARARGS"]
_traceback_of: Final = vars(BaseException)["__traceback__"].__get__


def _handlers() -> list[CodeType]:
    """The code of the handlers that are set now."""
    found = []
    for number in range(1, _signal.NSIG):
        handler: Any = _signal.getsignal(number)
        if type(handler) is int or handler is None:
            continue
        if type(handler) is partial:
            handler = handler.func
        if type(handler) is MethodType:
            handler = handler.__func__
        if type(handler) is not FunctionType:
            handler = vars(type(handler)).get("__call__")
        if type(handler) is FunctionType:
            found.append(handler.__code__)
    return found


def note(doing: str, exc: BaseException) -> None:
    """Count one own failure, and say it on stderr at most once a minute for each kind of work."""
    try:
        failures[doing] += 1
        moment = time.monotonic()
        if moment - _last_said.get(doing, -_QUIET_S) < _QUIET_S:
            return
        _last_said[doing] = moment
        # It may quote foreign text, and a terminal obeys what it is sent.
        text = one_line(clean(f"tocsin: {doing} failed: {type(exc).__name__}: {exc}", 500), 500)
        sys.stderr.write(text.encode("ascii", "backslashreplace").decode() + "\n")
    except BaseException as problem:  # stderr may be closed, the stack used up: there is nowhere left to say it
        pass_on(problem)
