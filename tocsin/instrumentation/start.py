"""Start and stop: `init` puts everything in place, whatever is wrong; `shutdown` takes it away again."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from tocsin import clock, requests
from tocsin.contained import contained, own_threads
from tocsin.exporter import scrub, spool
from tocsin.exporter.drain import Drain
from tocsin.exporter.life import State
from tocsin.ids import uuid7
from tocsin.instrumentation import (
    asgi,
    calls,
    context,
    crumbs,
    ends,
    faults,
    hooks,
    imports,
    jobs,
    logs,
    loop,
    memory,
    pools,
    reserve,
    stacks,
    state,
    variables,
    wsgi,
)
from tocsin.instrumentation import shutdown as stop
from tocsin.instrumentation.aftermath import Aftermath
from tocsin.instrumentation.capture import Capture, resource
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.pulse import Chore, Pulse
from tocsin.instrumentation.state import Report, Sighting
from tocsin.model import Severity
from tocsin.settings import Settings, git_release, service_name, substitute_spool_dir

EXIT_TIMEOUT_S = 1.5
_BIRTH_TIMEOUT_S = 2.0
_BEFORE_KILLED_S = 1.0
_MOST_WAITING = 10

problems: list[str] = []
"""What was wrong with the settings when this process started; health shows it."""

_started: Settings | None = None
_header: dict[str, Any] | None = None  # of this process's spool
_registered = False
_lock = threading.RLock()


def init(service: str | None = None, **arguments: Any) -> None:
    """
    Watch this process from now on; never raises, and twice is harmless.

    A wrong setting is said in one line on stderr, and its default holds instead.

    Args:
        service: name of the service (else ``TOCSIN_SERVICE``, ``OTEL_SERVICE_NAME``, the program's name).
        arguments: further settings by their names, such as ``environment="staging"``; stronger than
            the environment. See `tocsin.settings.Settings`.
    """
    with contained("init"), _lock:
        settings, found = Settings.load_leniently(service=service, **arguments)
        problems[:] = found
        for problem in found:
            if problem not in _said_by_run():
                _say(problem)
        if settings == _started and state.current is not None:
            return
        _stop(EXIT_TIMEOUT_S)
        _start(settings)


def shutdown(timeout_s: float = EXIT_TIMEOUT_S) -> None:
    """Store what is left, within a bound, and put back every hook; what is not stored waits in the spool."""
    with contained("shutdown"), _lock:
        _stop(timeout_s)
        stop.uninstall()
        ends.uninstall()
        hooks.uninstall()
        pools.uninstall()
        logs.uninstall()
        calls.uninstall()
        crumbs.keep(0)
        variables.keep(False)
        context.uninstall()
        wsgi.uninstall()
        jobs.uninstall()
        imports.forget()
        stacks.forget()


def flush(timeout_s: float = EXIT_TIMEOUT_S) -> bool:
    """Wait until what was captured so far is stored; False when the time is over."""
    with contained("waiting until errors are stored"):
        capture = state.current
        return capture is None or capture.flush(timeout_s)
    return False


def _start(settings: Settings) -> None:
    global _started
    scrub.hide(settings.secrets())
    asked = settings
    if not settings.service or not settings.release:
        settings = settings.with_names(service_name(sys.orig_argv), git_release())
    state.settings = settings
    ends.take_watcher()
    state.current = _open(settings, State.ALIVE)
    if state.current is None:
        return
    _started = asked
    stop.install(_end)
    ends.install()
    hooks.install()
    pools.install()
    crumbs.keep(settings.breadcrumbs)
    variables.keep(settings.locals)
    logs.install()
    calls.install()
    context.install()
    asgi.install()
    wsgi.install()
    jobs.install()
    after_import("gunicorn.workers.base", _patch_gunicorn)
    if settings.traces:
        _provide_traces()
    register_at_exit()


def follow(settings: Settings) -> None:
    """Watch a process that a watched one has spawned, unless it is watched already; its spool is made at need."""
    with contained("following the process that has spawned this one"), _lock:
        if state.current is None:
            scrub.hide(settings.secrets())
            state.settings, state.current = settings, _Unborn()
            variables.keep(settings.locals)
            hooks.install()
            pools.install()
            logs.install()
            context.install()
            register_at_exit()


def register_at_exit() -> None:
    """Store what is left when the process ends, and begin anew in forked children; once."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(stop.at_exit)
        os.register_at_fork(after_in_child=_after_fork)


def _open(settings: Settings, first: State) -> Capture | None:
    """A spool and a drain of this process, which says of its life what it has come to."""
    global _header
    _header = _make_header(settings)
    own = open_spool(settings, _header)
    if own is None:
        return None
    own.life.set_watcher(ends.watcher_pid())
    own.life.set_state(first)
    faults.watch(own)

    def keep_count() -> None:  # again and again: two threads may have written it in the wrong order
        requests.keep_in(own.life.active)

    keep_count()
    reserve.keep()
    drain = Drain(settings, own, own.folder, _say_stored)
    drain.start()
    watch_memory = memory.Watch(own, settings.memory_warn_percent).look
    chores: list[Chore] = [keep_count, functools.partial(faults.watch, own), reserve.keep, watch_memory, _say_unsaid]
    if settings.loop_blocked_s:
        chores.append(loop.Watch(own, settings.loop_blocked_s).look)
    pulse = Pulse(own, chores)
    pulse.start()
    return Capture(own, drain, pulse)


def _say_unsaid(*, is_last: bool = False) -> None:
    for tell in state.unsaid:
        tell(is_last)


def _make_header(settings: Settings) -> dict[str, Any]:
    instance_id = ends.watched_by.get(ends.INSTANCE) or uuid7()
    return {
        "resource": resource(settings.service, settings.environment, settings.release, instance_id),
        "started_ns": clock.now_ns(),
    }


def open_spool(settings: Settings, header: dict[str, Any]) -> spool.Spool | None:
    """A spool of this process; in the temporary folder where the set one cannot be used, None without any."""
    # The second is worked out when it is needed: while the interpreter ends, nothing can be imported for it.
    for is_substitute in (False, True):
        folder = Path(substitute_spool_dir() if is_substitute else settings.spool_dir)
        try:
            limit = settings.spool_max_bytes or spool.default_max_bytes(folder)
            return spool.Spool(folder, limit, header)
        except OSError as problem:
            _say(f"the spool folder {folder} cannot be used: {problem}")
    return None


def _stop(timeout_s: float) -> None:
    global _started
    with contained("telling the rest"):
        _say_unsaid(is_last=True)
    capture, state.current, _started = state.current, None, None
    if capture is not None:
        capture.close(timeout_s)
        requests.keep_in(None)
        faults.uninstall()


def _end() -> None:
    """Store what is left, within a bound; what fails after that is written down for whoever comes next."""
    settings = state.settings if state.current is not None else None
    _stop(EXIT_TIMEOUT_S)
    if settings is not None:
        state.current = Aftermath(lambda: open_spool(settings, _header or _make_header(settings)))
    ends.stay_interrupted()


def _after_fork() -> None:
    """In a forked child threads are gone and the files are the parent's: begin anew, at the first error."""
    global _lock, _header
    _lock = threading.RLock()  # another thread of the parent may have held it
    _header = None
    own_threads.clear()
    ends.watched_by.clear()
    faults.begin_anew()
    requests.begin_anew()
    loop.forget()
    stop.begin_anew()
    inherited = state.current
    if isinstance(inherited, Capture):
        inherited.spool.abandon()
    if isinstance(inherited, Capture | _Unborn):  # one that another thread was about to replace stays so for ever
        state.current = _Unborn()


def live_on(timeout_s: float | None = None) -> None:
    """
    Say in a forked child that it lives a life of its own: a worker, which serves and whose end means something.

    Of another forked child nobody knows what its end means: `multiprocessing` ends its own by `os._exit`.

    Args:
        timeout_s: the most that its parent waits for its end, before it kills it.
    """
    stop.live_on(timeout_s)
    stand_in = state.current
    capture = _born(stand_in) if isinstance(stand_in, _Unborn) else stand_in
    if isinstance(capture, Capture):
        capture.spool.life.set_state(State.ALIVE)
        faults.watch(capture.spool)


def _patch_gunicorn(module: ModuleType) -> None:
    """Its workers are forked, and are born before they load the application."""
    original = module.Worker.init_process
    if getattr(original, "_tocsin", False):
        return

    @functools.wraps(original)
    def init_process(self: Any) -> None:
        with contained("starting anew in a worker"):
            live_on(self.cfg.graceful_timeout - _BEFORE_KILLED_S)
        try:
            original(self)
        except Exception as exc:
            if not self.booted:
                _note_no_worker(exc)
            raise

    init_process._tocsin = True  # type: ignore[attr-defined]
    module.Worker.init_process = init_process


def _note_no_worker(exc: Exception) -> None:
    """A worker that cannot begin is the end of the server."""
    with contained("telling why a worker cannot begin"):
        seen = Sighting(exc, mechanism="gunicorn", handled=False, severity=Severity.CRITICAL)
        if state.current is not None and state.current.see(seen):
            ends.note_told()


class _Unborn:
    """Stands for the capture of a forked child until it has something to record."""

    def __init__(self) -> None:
        self.birth = allocate_lock()  # only ever tried: whoever gets it gives birth, also of two in one thread
        self.waiting: deque[Sighting] = deque(maxlen=_MOST_WAITING)

    @property
    def is_giving_birth(self) -> bool:
        return self.birth.locked()

    def see(self, sighting: Sighting) -> str | None:
        capture = _born(self)
        if capture is not None:
            return capture.see(sighting)
        if not self.is_giving_birth:
            return None
        # A signal handler in the middle of it, which must not wait: recorded right after.
        sighting.error_id = uuid7(clock.now_ns())
        self.waiting.append(sighting)
        return sighting.error_id

    def record(self, report: Report) -> str | None:
        capture = _born(self)
        return capture.record(report) if capture is not None else None

    def tell(self, line: Mapping[str, Any]) -> None:
        capture = _born(self)
        if capture is not None:
            capture.tell(line)

    def flush(self, timeout_s: float) -> bool:
        return True

    def close(self, timeout_s: float) -> None:
        return None


def _born(stand_in: _Unborn) -> Capture | None:
    """The capture of this child, made by the first thread that needs it; the others wait for it, within a bound."""
    with contained("starting anew in a forked process"):
        lock = _lock
        if lock.acquire(timeout=_BIRTH_TIMEOUT_S):
            try:
                if state.current is stand_in and state.settings is not None and stand_in.birth.acquire(blocking=False):
                    _give_birth(stand_in, state.settings)
            finally:
                lock.release()
    return state.current if isinstance(state.current, Capture) else None


def _give_birth(stand_in: _Unborn, settings: Settings) -> None:
    try:
        state.current = capture = _open(settings, State.UNMARKED)
        while capture is not None and stand_in.waiting:
            capture.see(stand_in.waiting.popleft())
    finally:
        stand_in.birth.release()


def _provide_traces() -> None:
    """With `--traces`: a TracerProvider, unless the user has set one; spans go where the user's exporters say."""
    with contained("setting up traces"):
        from opentelemetry import trace  # noqa: PLC0415  (only with --traces)
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(TracerProvider())


def _said_by_run() -> list[str]:
    """What `tocsin run` said at the start of this program already."""
    return Settings.load_leniently()[1] if os.environ.get("TOCSIN_RUN") else []


def _say(text: str) -> None:
    with suppress(Exception):
        sys.stderr.write(f"tocsin: {text}\n")


def _say_stored(text: str) -> None:
    with suppress(Exception):
        sys.stderr.write(text + "\n")
