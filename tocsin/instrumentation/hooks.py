"""The interpreter's own last words: of the main thread, of threads, of event loops, and what Python itself ignores."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType, TracebackType
from typing import Any, Final

from tocsin.contained import contained
from tocsin.exporter.classify import qualified
from tocsin.instrumentation import crumbs, ends, loop, stacks, state
from tocsin.instrumentation.context import current_facts, current_scope
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.logs import quiet
from tocsin.instrumentation.patches import Layer, Patch, layer_of
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity


def install() -> None:
    """Hook in, each hook calling the one it found; harmless when called twice."""
    for patch in _PATCHES:
        patch.install()
    after_import("asyncio", _watch_loops)
    loop.find()


def uninstall() -> None:
    """Put back what was found, where nobody has hooked in on top of us since."""
    for patch in _PATCHES:
        patch.uninstall()
    _forget_loops()
    loop.forget()


# The main thread


def _uncaught(layer: Layer) -> Callable[..., Any]:
    def excepthook(kind: type[BaseException], exc: BaseException, tb: TracebackType | None) -> None:
        if layer.is_on:
            _note_uncaught(exc, tb)
        layer.before(kind, exc, tb)

    return excepthook


def _note_uncaught(exc: BaseException, tb: TracebackType | None) -> None:
    with contained("reading an uncaught exception"):
        capture = state.current
        if (
            capture is not None
            and issubclass(type(exc), BaseException)
            and capture.see(Sighting(exc, mechanism="excepthook", handled=False, tb=tb))
        ):
            ends.note_told()


# Threads


def _uncaught_in_thread(layer: Layer) -> Callable[..., Any]:
    def excepthook(args: Any) -> None:
        if layer.is_on:
            _note_thread(args)
        layer.before(args)

    return excepthook


def _note_thread(args: Any) -> None:
    with contained("reading what ended a thread"):
        capture = state.current
        # Only the default hook leaves SystemExit out by itself; for a thread it is a way to end.
        if capture is not None and args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            capture.see(Sighting(args.exc_value, mechanism="threading", handled=False, tb=args.exc_traceback))


# What Python cannot raise anywhere: of finalizers, callbacks of weak references and of atexit, bare threads


def _unraisable(layer: Layer) -> Callable[..., Any]:
    def unraisablehook(unraisable: Any) -> None:
        # While the interpreter takes itself apart anything of ours may be gone already.
        if layer.is_on:
            try:
                _note_unraisable(unraisable)
            except Exception:
                pass
        layer.before(unraisable)

    return unraisablehook


def _note_unraisable(unraisable: Any) -> None:
    with contained("reading what Python ignores"):
        capture, exc = state.current, unraisable.exc_value
        if capture is None or exc is None:
            return
        seen = Sighting(exc, mechanism="unraisable", handled=False, tb=unraisable.exc_traceback)
        said = unraisable.err_msg if type(unraisable.err_msg) is str else "Exception ignored in"
        seen.attributes = {"log.message": stacks.tidy(f"{said.rstrip(':')}: {_name_of(unraisable.object)}", 500)}
        if sys.is_finalizing():
            seen.severity = Severity.MEDIUM  # modules are being taken apart: it hurts nobody any more
        capture.see(seen)


def _name_of(thing: object) -> str:
    """What an object is called; its class where it is no function, and nothing of its own is asked."""
    if type(thing) is MethodType:
        thing = thing.__func__
    if type(thing) is FunctionType:
        return thing.__qualname__
    return f"<{qualified(type(thing))} object>"


_PATCHES: Final = [
    Patch(sys, "excepthook", _uncaught),
    Patch(threading, "excepthook", _uncaught_in_thread),
    Patch(sys, "unraisablehook", _unraisable),
]


# Event loops

_root: Any = object  # of them all, once asyncio is there
_loops: list[Patch] = []
_was_born: classmethod[Any, ..., None] | None = None


def _watch_loops(module: ModuleType) -> None:
    """On the classes, those of the standard library, of uvloop and of whoever derives from them, also later."""
    global _root, _was_born
    _root = module.AbstractEventLoop
    for kind in _kinds_of(_root):
        _patch_loop(kind)
    if _was_born is None and "__init_subclass__" not in vars(_root):
        _was_born = classmethod(_note_birth)
        _root.__init_subclass__ = _was_born


def _forget_loops() -> None:
    global _was_born
    while _loops:  # what is derived was patched last
        _loops.pop().uninstall()
    if _was_born is not None and vars(_root).get("__init_subclass__") is _was_born:
        del _root.__init_subclass__
    _was_born = None


def _note_birth(kind: type, **options: Any) -> None:
    super(_root, kind).__init_subclass__(**options)
    if _was_born is not None:
        with contained("watching a kind of event loop"):
            _patch_loop(kind)


def _kinds_of(root: type) -> list[type]:
    """What is derived from a class, nearest first."""
    found: list[type] = type.__subclasses__(root)
    for kind in found:
        found += set(type.__subclasses__(kind)).difference(found)
    return found


def _patch_loop(kind: type) -> None:
    """Where a class brings a method of its own; elsewhere it has that of its base, which is patched."""
    for name, make in _LOOP_METHODS.items():
        found = getattr(kind, name, None)
        layer = layer_of(found)
        if found is None or found is getattr(_root, name) or (layer is not None and layer.is_on):
            continue
        patch = Patch(kind, name, make)
        patch.install()
        _loops.append(patch)


class _Reporting(threading.local):
    context: object = None


_reporting = _Reporting()
"""What a loop is telling of just now: by each of its methods and their bases, it shall be seen once."""


def _telling(layer: Layer) -> Callable[..., Any]:
    """Around a method that gets a report; what it logs of it is the same again."""

    def tell(self: Any, context: dict[str, Any]) -> Any:
        outer = _reporting.context
        if not layer.is_on or outer is context:
            return layer.before(self, context)
        with contained("reading what asyncio reports"):
            _note_report(context)
        _reporting.context = context
        try:
            with quiet():
                return layer.before(self, context)
        finally:
            _reporting.context = outer

    return tell


def _note_report(context: dict[str, Any]) -> None:
    capture = state.current
    if capture is None:
        return
    exc = context.get("exception")
    message = context.get("message")
    said = message if type(message) is str and message else "asyncio reports an error"

    def see() -> None:
        error = exc if isinstance(exc, BaseException) else said
        seen = Sighting(error, mechanism="asyncio", handled=False, logger="asyncio", place="asyncio")
        seen.attributes = {"log.message": stacks.tidy(said)}
        capture.see(seen)

    around = _context_of(context)
    with crumbs.of_task(context.get("task") or context.get("future")):
        if around is None:
            see()
        else:
            around.copy().run(see)  # a copy: it may be entered already


def _context_of(report: dict[str, Any]) -> contextvars.Context | None:
    """Where the task or the callback was started that a report is about."""
    future = report.get("task") or report.get("future")
    its_own = getattr(future, "get_context", None)
    found = its_own() if its_own is not None else getattr(future, "_tocsin_context", None)
    if found is None:
        found = getattr(report.get("handle"), "_context", None)
    return found if isinstance(found, contextvars.Context) else None


def _keeping_context(layer: Layer) -> Callable[..., Any]:
    """A task's context cannot be asked for before Python 3.12; keep it, where there is anything in it."""

    def create_task(self: Any, coro: Any, **options: Any) -> Any:
        task = layer.before(self, coro, **options)
        if layer.is_on and (current_scope.get() is not None or current_facts.get() is not None):
            with contained("keeping a task's context"):
                task._tocsin_context = options.get("context") or contextvars.copy_context()
        return task

    return create_task


_LOOP_METHODS: Final[dict[str, Callable[[Layer], Callable[..., Any]]]] = {
    "call_exception_handler": _telling,
    "run_forever": loop.running,
    "default_exception_handler": _telling,  # by which a loop tells that its own handler has failed
    **({"create_task": _keeping_context} if sys.version_info < (3, 12) else {}),
}
