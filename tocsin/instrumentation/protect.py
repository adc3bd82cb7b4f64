"""What users call: `track_error` and `protect`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, overload

from tocsin.contained import contained
from tocsin.ids import uuid7
from tocsin.instrumentation import stacks, state
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity

P = ParamSpec("P")
T = TypeVar("T")


def track_error(
    error: BaseException | str,
    severity: str | None = None,
    category: str | None = None,
    context: Mapping[str, Any] | None = None,
) -> str:
    """
    Record an error by hand: ``track_error(error, "high", "amocrm", {"lead_id": "123"})``.

    Args:
        error: an exception, raised or not, or a text.
        severity: low, medium, high or critical; None lets tocsin judge. A word that is none of these
            is taken for None, since a typing mistake must not hurt a program.
        category: any word; None lets tocsin judge.
        context: facts to keep with the error; scrubbed, shortened.

    Returns:
        The error's id, at once: it is in the spool, not yet in the database. Before `tocsin.init`
        nothing is recorded, and the id names nothing.
    """
    try:
        return _track(error, severity, category, context)
    except RecursionError:  # there is no room left for even a call
        state.missed += 1
        return _NONE


_NONE: Final = "00000000-0000-0000-0000-000000000000"


def _track(error: object, severity: str | None, category: str | None, context: Mapping[str, Any] | None) -> str:
    capture = state.current
    found = None
    if capture is not None:
        with contained("track_error"):
            if severity is not None and severity not in list(Severity):
                severity = None
            if isinstance(error, BaseException):
                seen = Sighting(error, mechanism="track_error", handled=True)
            else:
                seen = _said(str(error))
                severity = severity or Severity.HIGH
            seen.severity, seen.category, seen.facts = severity, category, context
            found = capture.see(seen)
    return found or uuid7()


def _said(text: str) -> Sighting:
    """A text as an error; where it was said stands for the stack that it does not have."""
    frame = stacks.caller()
    seen = Sighting(text, mechanism="track_error", handled=True)
    if frame is not None:
        code = frame.f_code
        seen.place = f"{frame.f_globals.get('__name__')} in {code.co_qualname}"
        seen.stack = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
    return seen


@overload
def protect(function: Callable[P, T], /) -> Callable[P, T]: ...


@overload
def protect(
    *, category: str | None = None, severity: str | None = None, context: Mapping[str, Any] | None = None
) -> Guard: ...


def protect(
    function: Callable[P, T] | None = None,
    /,
    *,
    category: str | None = None,
    severity: str | None = None,
    context: Mapping[str, Any] | None = None,
) -> Callable[P, T] | Guard:
    """
    Record what leaves a function or a block, and raise it again.

    ``@tocsin.protect`` and ``@tocsin.protect(category="amocrm", severity="high")`` for sync and async
    functions, whose signature stays; ``with tocsin.protect(…):`` and ``async with tocsin.protect(…):``.

    Args:
        severity, category: as for `track_error`.
        context: facts to keep with each error.
    """
    guard = Guard(category, severity, context)
    return guard if function is None else guard(function)


class Guard:
    """What `protect` gives: a decorator, and a context manager of both kinds."""

    def __init__(self, category: str | None, severity: str | None, context: Mapping[str, Any] | None) -> None:
        self._category = category
        self._severity = severity if severity in list(Severity) else None
        self._context = context

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return guarded_async  # type: ignore[return-value]
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator: put `with tocsin.protect():` into it")

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            with self:
                return function(*args, **kwargs)

        return guarded

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        capture = state.current
        if exc is None or capture is None:
            return
        try:
            seen = Sighting(exc, mechanism="protect", handled=True)
            seen.severity, seen.category, seen.facts = self._severity, self._category, self._context
            capture.see(seen)
        except RecursionError:  # there is no room left for even a call
            state.missed += 1

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, tb)
