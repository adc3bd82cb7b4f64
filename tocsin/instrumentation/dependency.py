"""
What a service needs and may be without for a while: Redis, a database, somebody's API.

That it is away is told once for each outage, however many calls fail; an optional one costs nobody a connect
time-out meanwhile; and its return is noticed and told. Nothing here waits for anything but the user's own call.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context, ContextVar
from types import CoroutineType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar, overload
from weakref import WeakSet

from tocsin import clock
from tocsin.contained import contained, note, own_threads
from tocsin.exporter import classify
from tocsin.exporter.raw import is_group, members_of, traceback_of
from tocsin.ids import uuid7
from tocsin.instrumentation import stacks, state
from tocsin.instrumentation.capture import Capture
from tocsin.instrumentation.context import running_loop
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity
from tocsin.text import one_line

P = ParamSpec("P")
T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
PROBE_S: Final = 10.0
"""How long a probe that is a coroutine may take."""
STUCK_S: Final = 30.0
"""When a probe has said nothing for so long, a real call is let through."""
FIRST_SETTLE_S: Final = 2.0
"""It is told to be back when it has been for so long; what goes away again before that goes on being away."""
LONGEST_SETTLE_S: Final = 300.0
"""The same for one that comes and goes."""
MOST: Final = 100
"""Dependencies of a process that are told of; further ones still get their fallback."""

_CALM_S = 600.0  # so long after a return it neither comes nor goes
_COUNT_EVERY_S = 1.0
_NAME = 60
_MOST_MEMBERS = 100

_random = random.Random()  # of its own: a user's `random.seed` is the user's
os.register_at_fork(after_in_child=_random.seed)


def dependency(
    name: str,
    *,
    optional: bool | None = None,
    probe: Callable[[], object] | None = None,
    away_on: type[BaseException] | Iterable[type[BaseException]] = (),
) -> Dependency:
    """
    Something that this service needs: ``redis = tocsin.dependency("redis", optional=True, probe=client.ping)``.

    The same name is the same dependency, wherever in the process it is asked for; what is said of it there holds
    from then on.

    Args:
        name: as people say it; errors of one name form one group.
        optional: True: callers get their fallback while it is away. False: they get the exception.
        probe: asks whether it is there, by returning anything but False; may be a coroutine function, or return
            something to be awaited, and then runs in the event loop that used the dependency last. Without
            one, a real call is let through every now and then.
        away_on: further exceptions that say that it is away, besides those of connections and time-outs.
    """
    key = _tidied(name)
    found = _known.get(key)
    if found is None:
        found = Dependency(key, is_told=len(_known) < MOST)
        if found.is_told:
            found = _known.setdefault(key, found)
        else:
            note("telling of a dependency", ValueError(f"{key} is one more than {MOST}"))
    found.set(optional, probe, away_on)
    return found


_known: dict[str, Dependency] = {}
_all: WeakSet[Dependency] = WeakSet()


class Dependency:
    """
    What `dependency` gives: a decorator, a context manager of both kinds, and calls.

    ``@redis(fallback=None)``, ``redis.call(client.get, "key", fallback=None)``, ``await redis.acall(…)``,
    ``with redis:``. A fallback is a value, or a function that is called with the same arguments instead.
    """

    def __init__(self, name: str, *, is_told: bool = True) -> None:
        self.name = name
        self.is_told = is_told
        self._is_optional = False
        self._probe: Callable[[], object] | None = None
        self._away_on: tuple[type[BaseException], ...] = ()
        self.begin_anew()
        _all.add(self)

    def begin_anew(self) -> None:
        """Know nothing of how it stands, as a forked child does."""
        self._change = threading.RLock()  # held for a few instructions; a signal handler may come in between
        self._outage: _Outage | None = None
        self._settling: _Outage | None = None  # it is back, which is told when that has lasted
        self._settle_s = FIRST_SETTLE_S
        self._back_at = float("-inf")  # monotonic, when the last outage was over
        self._last_id: str | None = None  # the error that told of it
        self._told_to: object = None  # the capture that knows how it stands
        self._last_ns = 0

    def set(
        self,
        optional: bool | None,
        probe: Callable[[], object] | None,
        away_on: type[BaseException] | Iterable[type[BaseException]],
    ) -> None:
        """Take over what somebody says of it; None says nothing."""
        if optional is not None:
            self._is_optional = bool(optional)
        if callable(probe):
            self._probe = probe
        with contained("reading what a dependency is away on"):
            kinds = (away_on,) if isinstance(away_on, type) else tuple(away_on)
            fit = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
            self._away_on = tuple(dict.fromkeys((*self._away_on, *fit)))[:_MOST_MEMBERS]

    def __repr__(self) -> str:
        return f"<tocsin.dependency {self.name}: {'away' if self.is_away else 'there'}>"

    @property
    def is_away(self) -> bool:
        """Whether it was away when it was asked last."""
        return self._outage is not None

    def call(self, function: Callable[..., T], /, *args: Any, fallback: Any = None, **kwargs: Any) -> T | Any:
        """
        What a function returns; where the dependency is optional and away, the fallback.

        Args:
            fallback: a value, or a function that is called with the same arguments.
        """
        return self._run(function, args, kwargs, fallback)

    async def acall(
        self, function: Callable[..., Awaitable[T]], /, *args: Any, fallback: Any = None, **kwargs: Any
    ) -> T | Any:
        """`call` for a coroutine function; its fallback may be one too."""
        return await self._run_async(function, args, kwargs, fallback)

    @overload
    def __call__(self, function: Callable[P, T], /) -> Callable[P, T]: ...

    @overload
    def __call__(self, /, *, fallback: Any = None) -> Callable[[Callable[P, T]], Callable[P, T]]: ...

    def __call__(self, function: Callable[P, T] | None = None, /, *, fallback: Any = None) -> Any:
        """Decorate a function that talks to the dependency: ``@redis(fallback=None)``; its signature stays."""
        return functools.partial(self._decorate, fallback) if function is None else self._decorate(fallback, function)

    def __enter__(self) -> bool:
        """
        Whether it is worth a try: False while an optional dependency is known to be away.

        The block runs all the same, since nothing can keep it from it: ``with redis as is_there: …``.
        """
        began = time.monotonic()
        is_tried = self._may_try(began)
        _entered.set((self, began, is_tried, _entered.get()))
        return is_tried

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> bool:
        entry = _entered.get()
        began, is_tried = time.monotonic(), False
        if entry is not None and entry[0] is self:  # else it is left in another context, as a generator may be
            _, began, is_tried, before = entry
            _entered.set(before)
        if exc is None:
            if is_tried:
                self._answered(began)
            return False
        is_failure = issubclass(type(exc), Exception)  # which a cancellation is not
        return is_failure and self._failed(exc, began, tb, is_tried=is_tried)  # type: ignore[arg-type]

    async def __aenter__(self) -> bool:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        return self.__exit__(kind, exc, tb)

    def _decorate(self, fallback: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                return await self._run_async(function, args, kwargs, fallback)

            return guarded_async
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator: put `with` the dependency into it")

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self._run(function, args, kwargs, fallback)

        return guarded

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], fallback: Any) -> Any:
        began = time.monotonic()
        if self._may_try(began):
            try:
                result = function(*args, **kwargs)
            except Exception as exc:
                if not self._failed(exc, began, _without_ours(exc)):
                    raise
            else:
                if type(result) is not CoroutineType:  # which has asked nobody yet
                    self._answered(began)
                return result
        return fallback(*args, **kwargs) if callable(fallback) else fallback

    async def _run_async(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], fallback: Any
    ) -> Any:
        began = time.monotonic()
        if self._may_try(began):
            try:
                result = await function(*args, **kwargs)
            except Exception as exc:
                if not self._failed(exc, began, _without_ours(exc)):
                    raise
            else:
                self._answered(began)
                return result
        if not callable(fallback):
            return fallback
        result = fallback(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    # How it stands

    def _may_try(self, now: float) -> bool:
        """Whether a call goes through: always, but to an optional dependency that is away."""
        outage = self._outage
        if outage is None or not self._is_optional:
            return True
        outage.note_loop()
        return outage.is_due(now)

    def _answered(self, began: float) -> None:
        """A call that began then has come to its end: it is there."""
        outage = self._outage
        if outage is not None and began > outage.away_at:  # an earlier call may just have been slow
            self._end(outage)
        if self._told_to is not state.current:
            with contained("telling of a dependency"):
                self._tell_standing(is_away=self._outage is not None)

    def _failed(self, exc: Exception, began: float, tb: TracebackType | None, *, is_tried: bool = True) -> bool:
        """Note why a call failed that began then; whether the caller gets the fallback instead."""
        is_away = False
        with contained("watching a dependency"):
            is_away = self._says_away(exc)
            if is_away:
                self._note_away(exc, began, tb, is_tried=is_tried)
        return is_away and self._is_optional

    def _says_away(self, exc: BaseException) -> bool:
        if is_group(exc):
            members = members_of(exc)[:_MOST_MEMBERS]
            return all(self._says_away(one) for one in members)
        return issubclass(type(exc), self._away_on) or _is_unreachable(exc)

    def _note_away(self, exc: Exception, began: float, tb: TracebackType | None, *, is_tried: bool) -> None:
        now = time.monotonic()
        capture = state.current
        over = None
        with self._change:
            is_begun = self._outage is None and began > self._back_at
            if is_begun:
                over = self._begin(now)
            outage = self._outage
            is_to_tell = outage is not None and outage.told_to is not capture
            if outage is not None:
                outage.told_to = capture
        if outage is None:  # it began before the return, and tells nothing of what is now
            self._know(exc, self._last_id)
            return
        if over is not None:
            self._tell_over(over)
        if is_to_tell:
            self._tell_away(outage, exc, tb)
        else:
            if is_begun:
                self._tell_standing(is_away=True, problem=_problem(exc))
            if not self._is_optional:
                self._know(exc, outage.error_id)
                self._count(outage, now, more=1)
        if is_begun:
            outage.note_loop()
            self._start_probing(outage)
        elif is_tried and self._is_optional and began > outage.away_at:
            outage.wait_longer(now)

    def _begin(self, now: float) -> _Outage | None:
        """Begin a new outage, or the last one again, which is not over after all; one that is, and nobody has told."""
        is_calm = now - self._back_at > _CALM_S
        self._settle_s = FIRST_SETTLE_S if is_calm else min(2 * self._settle_s, LONGEST_SETTLE_S)
        last, self._settling = self._settling, None
        is_same = last is not None and now < last.settled_at
        self._outage = last if last is not None and is_same else _Outage(now)
        self._outage.begin_again(now)
        return last if not is_same and last is not None and last.is_told else None

    def _end(self, outage: _Outage) -> None:
        with self._change:
            if self._outage is not outage:
                return
            self._outage, self._settling = None, outage
            self._back_at, self._last_id = time.monotonic(), outage.error_id
            outage.lasted_s = self._back_at - outage.began
            outage.settled_at, outage.back_ns = self._back_at + self._settle_s, self._now_ns()
            is_told = outage.is_told  # else whoever tells of its begin just now tells of its end as well
        outage.is_over.set()
        if is_told:
            with contained("telling that a dependency is back"):
                self._tell_standing(is_away=False)

    # What is told of it

    def _tell_away(self, outage: _Outage, exc: Exception, tb: TracebackType | None) -> None:
        """One error for the outage, whose group hangs on the name alone; and how it stands."""
        capture = state.current
        if capture is not None and self.is_told:
            seen = Sighting(exc, mechanism="dependency", handled=self._is_optional, tb=tb)
            seen.severity = Severity.HIGH if self._is_optional else Severity.CRITICAL
            seen.category = category_of(self.name)
            seen.place = f"{self.name} is away"
            seen.error_id, seen.is_admitted = outage.error_id, True  # in a storm of others it is written all the same
            outage.error_id = capture.see(seen) or outage.error_id
            outage.told_to = state.current  # of a forked child it may be born only now
            self._last_ns = max(self._last_ns, seen.time_ns)
            self._tell_standing(is_away=True, problem=_problem(exc))
        with self._change:
            is_back = self._outage is not outage and not outage.is_told
            outage.is_told = True
        if is_back:
            self._tell_standing(is_away=False)

    def tell_rest(self, *, is_last: bool) -> None:
        """Tell what was counted, and that it is back when that has lasted; at the end of the process in any case."""
        now = time.monotonic()
        with self._change:
            outage, over = self._outage, self._settling
            if over is not None and over.is_told and (is_last or now >= over.settled_at):
                self._settling = None
            else:
                over = None
        if outage is not None:
            self._count(outage, now, more=0, is_last=True)
        if over is not None:
            self._count(over, now, more=0, is_last=True)
            self._tell_over(over)

    def _tell_over(self, outage: _Outage) -> None:
        capture = state.current
        if isinstance(capture, Capture) and self.is_told:
            said = f"{self.name} answers again after {_span(outage.lasted_s)}"
            line = {"kind": "recovered", "time_unix_nano": outage.back_ns, "error_id": outage.error_id, "message": said}
            capture.tell(line)

    def _tell_standing(self, *, is_away: bool, problem: str = "") -> None:
        """How it stands; a forked child that has nothing to tell yet is not made to begin for it."""
        capture = state.current
        self._told_to = capture
        if not isinstance(capture, Capture) or not self.is_told:
            return
        capture.tell(
            {
                "kind": "dependency",
                "time_unix_nano": self._now_ns(),
                "name": self.name,
                "away": is_away,
                "optional": self._is_optional,
                "problem": stacks.tidy(problem, 500),
            }
        )

    def _know(self, exc: Exception, error_id: str | None) -> None:
        capture = state.current
        if isinstance(capture, Capture) and error_id is not None and self.is_told and not self._is_optional:
            capture.know(exc, error_id)

    def _count(self, outage: _Outage, now: float, *, more: int, is_last: bool = False) -> None:
        """
        Count calls that have failed since: onto the outage's error, at the time at which they fail.

        Not by the counters of a storm, whose time is that of the drain: one that came after the return would
        open the group again.
        """
        with self._change:
            if more:
                outage.failed, outage.failed_ns = outage.failed + more, self._now_ns()
            counted, failed = outage.counted, outage.failed
            if counted == failed or (now < outage.next_count and not is_last):
                return
            outage.counted, outage.next_count = failed, now + _COUNT_EVERY_S
        capture = state.current
        if isinstance(capture, Capture) and self.is_told:
            span = {"error_id": outage.error_id, "from": counted, "to": failed}
            capture.tell({"kind": "repeats", **span, "time_ns": outage.failed_ns})

    def _now_ns(self) -> int:
        """The time, and after all that was told before, whatever somebody does to the clock: the last word holds."""
        with self._change:
            self._last_ns = max(clock.now_ns(), self._last_ns + 1)
            return self._last_ns

    # Whether it is back

    def _start_probing(self, outage: _Outage) -> None:
        if self._probe is None:
            return
        thread = threading.Thread(target=self._probing, args=(outage,), name="tocsin-probe", daemon=True)
        outage.next_try, outage.pause_s = time.monotonic() + STUCK_S, FIRST_PAUSE_S
        try:
            Context().run(thread.start)  # not with the request of who happens to start it
        except RuntimeError:  # the process ends, or may have no more threads
            outage.next_try = time.monotonic() + outage.pause_s

    def _probing(self, outage: _Outage) -> None:
        """Ask again and again, in a thread of its own, until it answers."""
        own_threads.add(threading.get_ident())
        try:
            is_over = outage.is_over
            while not is_over.wait(outage.next_pause_s()):
                outage.next_try = time.monotonic() + STUCK_S
                began = time.monotonic()
                answer = self._asked(outage)
                if answer is None:  # it cannot be asked from here
                    outage.next_try = time.monotonic()
                    return
                if answer:
                    self._answered(began)
                    return
        finally:
            own_threads.discard(threading.get_ident())

    def _asked(self, outage: _Outage) -> bool | None:
        """What the probe says: whether it is there; None where there is no loop to ask in."""
        probe = self._probe
        try:
            answer = probe() if probe is not None else False
            if not inspect.isawaitable(answer):
                return answer is not False
            if outage.loop is None or outage.loop.is_closed():
                if inspect.iscoroutine(answer):
                    answer.close()
                return None
            return _awaited(answer, outage.loop) is not False
        except BaseException:  # foreign code in a thread of ours: whatever it raises, it is no answer
            return False


class _Outage:
    """One time that a dependency is away."""

    def __init__(self, now: float) -> None:
        self.began = self.away_at = now  # monotonic; it may have been back for a moment in between
        self.error_id = uuid7()
        self.told_to: object = self  # the capture that knows of it, or will in a moment
        self.is_told = False
        self.lasted_s = self.settled_at = self.next_try = 0.0
        self.back_ns = 0
        self.loop: Any = None  # that used it last
        self.failed = self.counted = self.failed_ns = 0  # calls since the one that told of it
        self.next_count = now + _COUNT_EVERY_S
        self._turn = threading.Lock()  # only ever tried

    def begin_again(self, now: float) -> None:
        """It is away, from now on."""
        self.away_at = now
        self.is_over = threading.Event()
        self.pause_s = FIRST_PAUSE_S
        self.wait_longer(now)

    def note_loop(self) -> None:
        """Remember the loop that runs here, if one does."""
        self.loop = running_loop() or self.loop

    def is_due(self, now: float) -> bool:
        """Whether this call is the one that tries again; whoever is, has some time for it."""
        if now < self.next_try or not self._turn.acquire(blocking=False):
            return False
        try:
            if now < self.next_try:
                return False
            self.next_try = now + STUCK_S
            return True
        finally:
            self._turn.release()

    def wait_longer(self, now: float) -> None:
        """A try has failed."""
        self.next_try = now + self.next_pause_s()

    def next_pause_s(self) -> float:
        """How long to wait now: growing, and not the same in all processes."""
        pause_s = self.pause_s
        self.pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        return min(pause_s * _random.uniform(1, 1.5), LONGEST_PAUSE_S)


_Entry = tuple[Dependency, float, bool, "Any"]
_entered: ContextVar[_Entry | None] = ContextVar("tocsin_dependency", default=None)


def forget() -> None:
    """Know of no dependency any more."""
    for one in list(_all):
        if (outage := one._outage) is not None:
            outage.is_over.set()
        one.begin_anew()
    _known.clear()


def _begin_anew() -> None:
    for one in list(_all):
        one.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)


def _tell_rest(is_last: bool) -> None:
    for one in list(_known.values()):
        one.tell_rest(is_last=is_last)


state.unsaid.append(_tell_rest)


def _awaited(answer: Awaitable[object], loop: Any) -> object:
    """What a probe's awaitable comes to in the user's loop, within a bound."""
    import asyncio  # noqa: PLC0415  (there is a loop, so it is loaded)

    async def ask() -> object:
        return await asyncio.wait_for(answer, PROBE_S)

    asking = ask()
    try:
        future = asyncio.run_coroutine_threadsafe(asking, loop)
    except RuntimeError:  # it is closed by now
        asking.close()
        raise
    try:
        return future.result(PROBE_S + 1)
    except BaseException:
        future.cancel()
        raise


def _without_ours(exc: Exception) -> TracebackType | None:
    """Its traceback from where the user's code begins."""
    tb = traceback_of(exc)
    while tb is not None and tb.tb_next is not None and tb.tb_frame.f_globals is globals():
        tb = tb.tb_next
    return tb


def _tidied(name: object) -> str:
    try:
        return one_line(stacks.tidy(str(name), _NAME), _NAME) or "unnamed"
    except Exception:
        return "unnamed"


def _problem(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {stacks.safe_message(exc)}"


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


# What tells that something is away, and what kind of thing it is

_ERRNO: Final = vars(OSError)["errno"].__get__
_UNREACHABLE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})


def _is_unreachable(exc: BaseException) -> bool:
    kind = type(exc)
    if issubclass(kind, (ConnectionError, TimeoutError)):
        return True
    if issubclass(kind, OSError) and _ERRNO(exc) in _UNREACHABLE:
        return True
    names = stacks.names_of(kind)
    return classify.says_unreachable(names, lambda: stacks.safe_message(exc))


_KINDS: Final = (
    ("amocrm", ("amocrm", "kommo")),
    ("telegram", ("telegram",)),
    ("queue", ("redis", "valkey", "rabbit", "amqp", "kafka", "celery", "broker", "queue", "nats", "sqs", "memcache")),
    ("database", ("postgres", "pgbouncer", "mysql", "maria", "mongo", "sqlite", "database", "clickhouse", "elastic")),
    ("database", ("supabase", "cassandra", "oracle", "mssql", "sql", "db")),
)


def category_of(name: str) -> str:
    """The part of the world that a dependency of this name belongs to."""
    lower = name.lower()
    return next((category for category, words in _KINDS if any(word in lower for word in words)), "network")
