"""
Work that others do: jobs of pools whose failure nobody ever asks for, and processes of `multiprocessing`.

A job that fails is watched until somebody reads its exception: only then its future is made one of a kind
that notices. A job that succeeds pays nothing.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from functools import partial
from types import ModuleType
from typing import Any, Final

from tocsin.contained import contained
from tocsin.exporter.raw import traceback_of
from tocsin.instrumentation import state
from tocsin.instrumentation.context import carried_by, run_as
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.patches import Layer, Patch, Patches
from tocsin.instrumentation.state import Sighting


def install() -> None:
    """Watch the pools and the processes; harmless when called twice."""
    for patch in _PATCHES:
        patch.install()
    after_import("multiprocessing.pool", _patch_pool)
    after_import("multiprocessing.util", _watch_process)
    after_import("multiprocessing.process", _patch_start)


def uninstall() -> None:
    """Put back what was found, where nobody has hooked in on top of us since."""
    global _at_end
    for patch in _PATCHES:
        patch.uninstall()
    _late_patches.uninstall()
    if _at_end is not None:
        _at_end.call.cancel()
        _at_end = None


_late_patches = Patches()


# Futures


def _is_awaited(future: Future[Any]) -> bool:
    """Whether asyncio waits for it, or has given up waiting: it tells of what is not asked for there by itself."""
    callbacks: list[object] = future._done_callbacks  # type: ignore[attr-defined]
    return any(getattr(one, "__qualname__", None) == _WAITS for one in callbacks)


_WAITS: Final = "_chain_future.<locals>._call_set_state"


class _Unread(Future[Any]):
    """A future that has failed, until somebody looks at why."""

    @property
    def _exception(self) -> BaseException | None:
        found: BaseException | None = vars(self).get("_exception")
        if found is not None:
            # It is read: from now on it is one like all others.
            self.__class__ = Future  # type: ignore[assignment]
        return found

    @_exception.setter
    def _exception(self, exc: BaseException | None) -> None:
        vars(self)["_exception"] = exc

    def __del__(self) -> None:
        with contained("looking after a job that failed"):
            exc = vars(self).get("_exception")
            if exc is not None and _UNWANTED not in vars(self) and not _is_awaited(self):
                _note_unread(exc, "concurrent.futures")


_Unread.__name__ = _Unread.__qualname__ = Future.__name__
_Unread.__module__ = Future.__module__
_UNWANTED: Final = "_tocsin_unwanted"


def _failing(layer: Layer) -> Any:
    def set_exception(self: Future[Any], exception: BaseException | None) -> None:
        if not layer.is_on or type(self) is not Future:
            layer.before(self, exception)
            return
        self.__class__ = _Unread  # first: who waits for it reads it at once
        try:
            layer.before(self, exception)
        except BaseException:
            self.__class__ = Future
            raise

    return set_exception


def _cancelling(layer: Layer) -> Any:
    """Who wants to cancel a job does not want to hear of it, also where it is too late."""

    def cancel(self: Future[Any]) -> bool:
        is_cancelled: bool = layer.before(self)
        if not is_cancelled and layer.is_on:
            with contained("watching a job"):
                vars(self)[_UNWANTED] = True
        return is_cancelled

    return cancel


_PATCHES: Final = [Patch(Future, "set_exception", _failing), Patch(Future, "cancel", _cancelling)]


def _note_unread(exc: object, pool: str) -> None:
    capture = state.current
    if capture is None or not issubclass(type(exc), BaseException):
        return
    assert isinstance(exc, BaseException)
    seen = Sighting(exc, mechanism="future", handled=False, logger=pool, place=pool)
    seen.attributes = {"log.message": "nobody has asked for the outcome of this job"}
    run_as(carried_by(exc), lambda: capture.see(seen))


# Pools of multiprocessing, whose results are like futures


def _patch_pool(module: ModuleType) -> None:
    for kind in (module.ApplyResult, module.MapResult):
        _late_patches.install(kind, "_set", partial(_failing_result, _unread_result(kind)))


def _unread_result(kind: Any) -> Any:
    def read(self: Any) -> Any:
        self.__class__ = kind
        return vars(self).get("_value")

    def write(self: Any, value: Any) -> None:
        vars(self)["_value"] = value

    def finish(self: Any) -> None:
        with contained("looking after a job that failed"):
            if vars(self).get("_success") is False:
                _note_unread(vars(self).get("_value"), "multiprocessing.pool")

    namespace = {"__module__": kind.__module__, "_value": property(read, write), "__del__": finish}
    return type(kind.__name__, (kind,), namespace)


def _failing_result(unread: Any, layer: Layer) -> Any:
    def _set(self: Any, i: Any, success_result: Any) -> None:
        with contained("watching a job that failed"):
            is_watched = layer.is_on and not success_result[0] and self._error_callback is None
            if is_watched and type(self) is unread.__base__:
                self.__class__ = unread
        layer.before(self, i, success_result)

    return _set


# Processes: what ends one is printed by `multiprocessing` itself, and seen by no hook


class _AtEnd:
    """A call at the end of this process's work, and of that of each child that forgets its parent's."""

    def __init__(self, util: ModuleType) -> None:
        self._util = util
        self.begin()
        util.register_after_fork(self, _AtEnd.begin)  # for as long as this object is kept

    def begin(self) -> None:
        self.call = self._util.Finalize(None, _note_end_of_process, exitpriority=1000)


_at_end: _AtEnd | None = None


def _watch_process(util: ModuleType) -> None:
    global _at_end
    if _at_end is None:
        _at_end = _AtEnd(util)


def _note_end_of_process() -> None:
    """Called while a process ends, in the middle of what ends it if that is an exception."""
    exc, capture = sys.exc_info()[1], state.current
    if exc is None or capture is None or issubclass(type(exc), SystemExit):
        return
    with contained("reading what ended a process"):
        tb = traceback_of(exc)
        while tb is not None and tb.tb_frame.f_globals.get("__name__") == "multiprocessing.process":
            tb = tb.tb_next
        capture.see(Sighting(exc, mechanism="multiprocessing", handled=False, tb=tb))


# A process that is spawned begins with nothing; it is given with its work what makes it begin as its parent did

_BEGIN: Final = """
try:
    import pickle
    from tocsin.instrumentation.start import follow
    follow(pickle.loads({settings!r}))
except Exception:
    pass
"""


class _Ticket:
    """Unpickled in the child it starts tocsin there; it names nothing that the child might not find."""

    def __reduce__(self) -> tuple[Any, ...]:
        import pickle  # noqa: PLC0415  (which is at work here)

        return exec, (_BEGIN.format(settings=pickle.dumps(state.settings)), {})


def _patch_start(module: ModuleType) -> None:
    _late_patches.install(module.BaseProcess, "start", _giving_ticket)


def _giving_ticket(layer: Layer) -> Any:
    def start(self: Any) -> Any:
        if not layer.is_on or state.settings is None:
            return layer.before(self)
        with contained("preparing a process"):
            vars(self)[_TICKET] = _Ticket()
        try:
            return layer.before(self)
        finally:
            vars(self).pop(_TICKET, None)

    return start


_TICKET: Final = "_tocsin"
