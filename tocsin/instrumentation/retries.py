"""
A call that may be tried again: what failed, when, how long to wait, and what is told in the end.

The loop is small enough to be here: a library for it would have to be taught to stop with the process, to
keep cancellation apart, and to leave an exception's stack as it is; and costs 30 ms at the start of a service.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Token
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tocsin import clock
from tocsin.contained import contained
from tocsin.exporter import classify
from tocsin.instrumentation import context, failed_jobs, stacks, state, timeouts, tries
from tocsin.instrumentation.capture import Capture
from tocsin.instrumentation.state import Sighting
from tocsin.instrumentation.tries import Call, Try
from tocsin.text import shorten

T = TypeVar("T")

RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]

LONGEST_PAUSE_S: Final = 30.0
_LOOK_S: Final = 0.25
"""How soon a pause notices that the process is asked to stop."""

_MOST_DOUBLINGS: Final = 20
_ATTEMPT_CHARS: Final = 500
_random: Final = random.SystemRandom()  # the program's own numbers stay as it has seeded them


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What `tocsin.protect` was told about tries; see there."""

    retries: int = 0
    retry_on: RetryOn = Exception
    timeout_s: float | None = None
    pause_s: float = 0.5
    job: bool | None = None
    severity: str | None = None
    category: str | None = None
    context: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if type(self.retries) is not int or self.retries < 0:
            raise ValueError(f"retries={self.retries!r}: how many tries in all, a whole number")
        for name, value in (("timeout_s", self.timeout_s), ("pause_s", self.pause_s)):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 <= value < float("inf")):
                raise ValueError(f"{name}={value!r}: a number of seconds")
        if self.timeout_s == 0:
            raise ValueError("timeout_s=0: nothing is that fast")
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        is_kinds = all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds)
        if not is_kinds and (isinstance(self.retry_on, tuple | type) or not callable(self.retry_on)):
            raise TypeError(f"retry_on={self.retry_on!r}: a class of exceptions, a tuple of them, or a function")

    @property
    def keeps_job(self) -> bool:
        """Whether what fails for good is kept for a person."""
        return self.retries > 0 if self.job is None else self.job

    def is_worth_it(self, failure: BaseException) -> bool:
        """Whether another try may help."""
        if isinstance(self.retry_on, tuple | type):
            return issubclass(type(failure), self.retry_on)
        with contained("asking retry_on"):
            return bool(self.retry_on(failure))
        return False

    def pause_after(self, tries_so_far: int) -> float:
        """
        Seconds until the next try: at random, so that all who failed together do not come back together.

        Source: "Exponential backoff and jitter", AWS architecture blog, full jitter.
        """
        doublings = min(tries_so_far - 1, _MOST_DOUBLINGS)
        return _random.uniform(0, min(LONGEST_PAUSE_S, self.pause_s * 2**doublings))


class _Trial:
    """One call of a protected function."""

    __slots__ = ("args", "attempts", "began_s", "call", "count", "function", "kwargs", "last", "now", "policy", "token")

    def __init__(
        self, policy: Policy, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.policy = policy
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.call = Call()
        self.count = 0
        self.attempts: list[dict[str, Any]] = []
        self.last: BaseException | None = None  # the failure of the try before

    def begin(self) -> Try:
        self.now = Try(self.call, tries.under_way())
        self.token: Token[Try | None] = tries.current.set(self.now)
        self.count += 1
        self.began_s = time.monotonic()
        return self.now

    def succeeded(self) -> None:
        self.last = None
        self._end(None)

    def failed(self, failure: BaseException) -> float | None:
        """Note a failure; seconds to wait before the next try, None when this was the last."""
        self._end(failure)
        if not issubclass(type(failure), Exception):
            return None
        with contained("noting a try"):
            self._note(failure)
        self.last = failure
        if self.count >= self.policy.retries or self._is_rerun or not _is_failure(failure) or _is_stopping():
            return None
        return self.policy.pause_after(self.count) if self.policy.is_worth_it(failure) else None

    def give_up(self, failure: BaseException) -> None:
        """
        Tell what this call has come to: one error, and a job.

        Who cancels or interrupts a call does not want it any more, unless the whole process stops; but that it
        has failed so far is told.
        """
        is_kept = _is_failure(failure)
        if self.last is not None and not issubclass(type(failure), Exception):
            failure, is_kept = self.last, _is_stopping()
        self.last = None  # it knows the frame of the call
        error_id = self._tell(failure)
        if is_kept and self.policy.keeps_job and not self._is_rerun:
            with contained("keeping a job"):
                self._keep(failure, error_id)

    def _end(self, failure: BaseException | None) -> None:
        try:
            tries.current.reset(self.token)
        except ValueError:  # it ends in another context than it has begun in, as what is garbage may
            tries.current.set(None)
        if not self.now.is_left:
            self.now.settle(failure)

    @property
    def _is_rerun(self) -> bool:
        return self.now.outer is not None and self.now.outer.call.is_rerun

    def _note(self, failure: BaseException) -> None:
        at = clock.now()
        self.attempts.append(
            {
                "at": at.isoformat(timespec="milliseconds"),
                "type": stacks.names_of(type(failure))[0],
                "message": shorten(stacks.safe_message(failure), _ATTEMPT_CHARS),
                "ms": round((time.monotonic() - self.began_s) * 1000),
            }
        )
        del self.attempts[: -failed_jobs.MOST_ATTEMPTS]

    def _tell(self, failure: BaseException) -> str | None:
        capture = state.current
        if capture is None:
            return None
        with contained("joining the tries of a call"):
            if self.call.mark is not None and isinstance(capture, Capture):
                capture.join(failure, self.call.mark)
        seen = Sighting(failure, mechanism="protect", handled=True)
        seen.severity, seen.category, seen.facts = self.policy.severity, self.policy.category, self._facts()
        return capture.see(seen)

    def _facts(self) -> Mapping[str, Any] | None:
        if not self.policy.retries or not self.attempts:
            return self.policy.context
        return {"attempts": self.attempts, **context.as_facts(self.policy.context)}

    def _keep(self, failure: BaseException, error_id: str | None) -> None:
        line = failed_jobs.line(
            self.function,
            self.args,
            self.kwargs,
            failure=failure,
            attempts=self.attempts,
            tries=self.count,
            category=self.policy.category,
            error_id=error_id,
        )
        outer = tries.under_way()
        if outer is not None:  # which may try it again
            outer.jobs.append((failure, line))
        elif (capture := state.current) is not None:
            capture.tell(line)


def of_function(policy: Policy, function: Callable[..., T]) -> Callable[..., T]:
    """A function with its tries."""
    name = failed_jobs.name_of(function)
    threads = timeouts.Threads(name)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> T:
        trial = _Trial(policy, guarded, args, kwargs)
        while True:
            one = trial.begin()
            try:
                if policy.timeout_s is None:
                    result = function(*args, **kwargs)
                else:
                    result = threads.call(function, args, kwargs, policy.timeout_s, one)
            except BaseException as exc:
                if not _goes_on(trial, exc):
                    raise
            else:
                trial.succeeded()
                return result

    return guarded


def of_coroutine_function(policy: Policy, function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """The same for a coroutine function."""
    name = failed_jobs.name_of(function)

    @functools.wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> T:
        trial = _Trial(policy, guarded, args, kwargs)
        while True:
            trial.begin()
            try:
                if policy.timeout_s is None:
                    result = await function(*args, **kwargs)
                else:
                    result = await timeouts.awaited(function(*args, **kwargs), policy.timeout_s, name)
            except BaseException as exc:
                if not await _goes_on_async(trial, exc):
                    raise
            else:
                trial.succeeded()
                return result

    return guarded


def _goes_on(trial: _Trial, failure: BaseException) -> bool:
    """Wait for the next try; False when there is none."""
    try:
        pause_s = trial.failed(failure)
        try:
            if pause_s is not None and _pause(pause_s):
                return True
        except BaseException as exc:
            trial.give_up(exc)
            raise
        trial.give_up(failure)
    except RecursionError:  # there is no room left for even a call
        state.missed += 1
    return False


async def _goes_on_async(trial: _Trial, failure: BaseException) -> bool:
    try:
        pause_s = trial.failed(failure)
        try:
            if pause_s is not None and await _pause_async(pause_s):
                return True
        except BaseException as exc:
            trial.give_up(exc)
            raise
        trial.give_up(failure)
    except RecursionError:
        state.missed += 1
    return False


def _pause(pause_s: float) -> bool:
    """Wait; False, and at once, when the process is asked to stop. In a loop's own thread all others would wait too."""
    if context.running_loop() is not None:
        return not _is_stopping()
    until = time.monotonic() + pause_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_S))
        if _is_stopping():
            return False
    return True


async def _pause_async(pause_s: float) -> bool:
    import asyncio  # noqa: PLC0415  (loaded by whoever runs a loop)

    until = time.monotonic() + pause_s
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(left, _LOOK_S))
        if _is_stopping():
            return False
    return True


def _is_stopping() -> bool:
    capture = state.current
    return isinstance(capture, Capture) and capture.spool.life.is_stopping


def _is_failure(failure: BaseException) -> bool:
    """Whether it is one at all, and no answer that a route gives on purpose: 404 of ``HTTPException(404)``."""
    if not classify.is_error(failure):
        return False
    status = classify.status_of(failure, stacks.names_of(type(failure)))
    return status is None or status >= 500
