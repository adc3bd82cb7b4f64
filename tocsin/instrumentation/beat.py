"""`tocsin.beat`: a function or a block that runs on a schedule, and says each time that it has."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

from tocsin import clock
from tocsin.beats import name_of, seconds_of
from tocsin.contained import contained
from tocsin.exporter import classify
from tocsin.failures import BadInput
from tocsin.instrumentation import stacks, state

P = ParamSpec("P")
T = TypeVar("T")

_MESSAGE: Final = 2_000
_PAUSE_S: Final = 1.0
"""What runs more often is told so often, and no more: it shall not fill the spool."""


def beat(name: str, *, every: str | timedelta | None = None, grace: str | timedelta | None = None) -> Heart:
    """
    Tell each time that something has run, so that it rings when it fails or stays away.

    ``@tocsin.beat("nightly", every="1d")`` for sync and async functions, whose signature stays, and
    ``with tocsin.beat("nightly", every="1d"):``. It is well when it returns, and has failed when an exception
    leaves it, which goes on its way; what is cancelled or interrupted is neither.

    Args:
        name: one for each job in an environment.
        every: how often it runs: ``30m``, ``2h``, ``1d``, ``1w``, or a `timedelta`; None where it was said before.
        grace: how much later it may come (default: a tenth of that, from 1 min to 2 h).

    Raises:
        ValueError: one of these is wrong, which it names; at once, not when the job runs.
    """
    try:
        return Heart(
            name_of(name),
            None if every is None else seconds_of("every", every),
            None if grace is None else seconds_of("grace", grace),
        )
    except BadInput as problem:
        raise ValueError(str(problem)) from None


class Heart:
    """What `beat` gives: a decorator, and a context manager of both kinds."""

    def __init__(self, name: str, every_s: float | None, grace_s: float | None) -> None:
        self._name = name
        self._every_s = every_s
        self._grace_s = grace_s
        self._began: list[float] = []  # of the blocks under way, monotonic
        self._told = {True: float("-inf"), False: float("-inf")}  # when it was told that it is so

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def beating_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                began = time.monotonic()
                try:
                    result = await function(*args, **kwargs)
                except BaseException as exc:
                    self._end(began, exc)
                    raise
                self._end(began, None)
                return result

            return beating_async  # type: ignore[return-value]
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator: put `with tocsin.beat(…):` into it")

        @functools.wraps(function)
        def beating(*args: P.args, **kwargs: P.kwargs) -> T:
            began = time.monotonic()
            try:
                result = function(*args, **kwargs)
            except BaseException as exc:
                self._end(began, exc)
                raise
            self._end(began, None)
            return result

        return beating

    def __enter__(self) -> None:
        self._began.append(time.monotonic())

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._end(self._began.pop(), exc)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, tb)

    def _end(self, began: float, exc: BaseException | None) -> None:
        try:
            with contained("telling a beat"):
                self._tell(began, exc)
        except RecursionError:  # there is no room left for even a call
            pass

    def _tell(self, began: float, exc: BaseException | None) -> None:
        ended = time.monotonic()
        witness = state.current
        is_ok = exc is None or not classify.is_error(exc)
        if witness is None or (is_ok and exc is not None and not isinstance(exc, SystemExit)):
            return
        if ended - self._told[is_ok] < _PAUSE_S:
            return
        self._told[is_ok] = ended
        message = ""
        if not is_ok and exc is not None:
            message = f"{stacks.names_of(type(exc))[0]}: {stacks.safe_message(exc)}"
        witness.tell(
            {
                "kind": "beat",
                "time_unix_nano": clock.now_ns(),
                "name": self._name,
                "every_s": self._every_s,
                "grace_s": self._grace_s,
                "ok": is_ok,
                "took_s": round(ended - began, 3),
                "message": stacks.tidy(message, _MESSAGE),
            }
        )
