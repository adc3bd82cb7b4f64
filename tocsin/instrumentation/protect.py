"""What users call: `track_error` and `protect`; and how a call that failed is made again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, overload

from tocsin.contained import contained
from tocsin.ids import uuid7
from tocsin.instrumentation import retries as retries_
from tocsin.instrumentation import stacks, state, tries
from tocsin.instrumentation.retries import Policy, RetryOn
from tocsin.instrumentation.state import Sighting
from tocsin.instrumentation.tries import Call, Try
from tocsin.model import Severity

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F")


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


@overload
def protect(
    *,
    category: str | None = None,
    severity: str | None = None,
    context: Mapping[str, Any] | None = None,
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout_s: float | None = None,
    pause_s: float = 0.5,
    job: bool | None = None,
) -> FunctionGuard: ...


def protect(
    function: Callable[P, T] | None = None,
    /,
    *,
    category: str | None = None,
    severity: str | None = None,
    context: Mapping[str, Any] | None = None,
    retries: int = 0,
    retry_on: RetryOn = Exception,
    timeout_s: float | None = None,
    pause_s: float = 0.5,
    job: bool | None = None,
) -> Callable[P, T] | Guard | FunctionGuard:
    """
    Record what leaves a function or a block, and raise it again; if asked to, only after further tries.

    ``@tocsin.protect`` and ``@tocsin.protect(category="amocrm", severity="high", retries=3)`` for sync and async
    functions and methods, whose signature stays; ``with tocsin.protect(…):`` and ``async with tocsin.protect(…):``
    for blocks, which can neither be tried again nor be cut off.

    What the last try fails of is one error, with all tries in its context, and is raised as it is; then the call is
    kept as a job, with its arguments as they are by then: see `tocsin jobs`. What an earlier try fails of is no
    error, whatever logs it. Cancellation, Ctrl-C and exits pass at once; so do answers that a route gives on
    purpose, such as ``HTTPException(404)``.

    Args:
        severity, category: as for `track_error`.
        context: facts to keep with each error.
        retries: so many tries **in all**: with 3, one and at most two more.
        retry_on: a class of exceptions, a tuple of them, or a function that says whether to try again; what else
            is raised is the end at once.
        timeout_s: for each try; what takes longer fails with a `TimeoutError`. A coroutine is cancelled. A sync
            function runs in a thread of its own, with the caller's context variables, and **the thread goes on**
            when nobody waits any more; while 20 of one function do, a further call fails at once.
        pause_s: the most that the first pause takes; each further one may take twice as long, up to 30 s, and all
            are cut short at random. A pause ends when the process is asked to stop: there is no further try then.
        job: whether a call that has failed for good is kept as a job; None: where `retries` are given.
    """
    if not retries and timeout_s is None and job is None:
        guard = Guard(category, severity, context)
        return guard if function is None else guard(function)
    policy = Policy(
        retries=retries,
        retry_on=retry_on,
        timeout_s=timeout_s,
        pause_s=pause_s,
        job=job,
        severity=_known(severity),
        category=category,
        context=context,
    )
    return FunctionGuard(policy)


def _known(severity: str | None) -> str | None:
    return severity if severity in list(Severity) else None


class Guard:
    """What `protect` gives: a decorator, and a context manager of both kinds."""

    def __init__(self, category: str | None, severity: str | None, context: Mapping[str, Any] | None) -> None:
        self._category = category
        self._severity = _known(severity)
        self._context = context

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        if (again := _inside(self, function)) is not None:
            return again
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return _marked(guarded_async)  # type: ignore[return-value]

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            with self:
                return function(*args, **kwargs)

        return _marked(guarded)

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


class FunctionGuard:
    """What `protect` gives where it is told of tries, a time-out or a job: a decorator alone."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        if (again := _inside(self, function)) is not None:
            return again
        if inspect.iscoroutinefunction(function):
            return _marked(retries_.of_coroutine_function(self._policy, function))  # type: ignore[return-value]
        return _marked(retries_.of_function(self._policy, function))

    if not TYPE_CHECKING:  # for a type checker it is no context manager

        def __enter__(self):
            raise TypeError(_NO_BLOCK)

        async def __aenter__(self):
            raise TypeError(_NO_BLOCK)

        def __exit__(self, *args):
            return None

        async def __aexit__(self, *args):
            return None


_NO_BLOCK: Final = (
    "a block cannot be run again, cut off or kept: give retries, timeout_s and job to @tocsin.protect(…) on a function"
)


def is_protected(function: object) -> bool:
    """Whether `protect` is around a function, also below other decorators that tell what they are around."""
    for _ in range(_MOST_WRAPPERS):
        if getattr(function, _MARK, None) is True:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


_MARK: Final = "_tocsin_protected"
_MOST_WRAPPERS: Final = 50


def _marked(function: F) -> F:
    setattr(function, _MARK, True)
    return function


def _inside(guard: Guard | FunctionGuard, function: Callable[P, T]) -> Callable[P, T] | None:
    """What stands above `@classmethod` or `@staticmethod` protects what is in it."""
    if isinstance(function, classmethod | staticmethod):
        return type(function)(guard(function.__func__))
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{function.__qualname__} is a generator: put `with tocsin.protect():` into it")
    return None


def rerun(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """
    Make a call again that has failed before, as a person wishes: one try, of which nothing is recorded if it fails.

    A coroutine function is run in an event loop of its own.

    Returns:
        What the function gives.

    Raises:
        Exception: whatever the function raises.
    """
    one = Try(Call((uuid7(), "", 0, True), is_rerun=True), None)
    token = tries.current.set(one)
    failure: BaseException | None = None
    try:
        found = function(*args, **kwargs)
        if isinstance(found, Coroutine):
            import asyncio  # noqa: PLC0415  (loaded where a loop runs)

            return asyncio.run(found)
        return found
    except BaseException as exc:
        failure = exc
        raise
    finally:
        tries.current.reset(token)
        one.settle(failure)
        failure = None  # it knows this frame
