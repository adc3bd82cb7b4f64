"""The interpreter's own last words: uncaught in the main thread, in threads, in asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tocsin.contained import contained
from tocsin.instrumentation import stacks, state
from tocsin.instrumentation.context import current_facts, current_scope
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.logs import quiet
from tocsin.instrumentation.state import Sighting

_found: dict[str, Any] = {}


def install() -> None:
    """Hook in, each hook calling the one it found; harmless when called twice."""
    if not getattr(sys.excepthook, "_tocsin", False):
        _found["sys"] = sys.excepthook
        sys.excepthook = _uncaught(sys.excepthook)
    if not getattr(threading.excepthook, "_tocsin", False):
        _found["threading"] = threading.excepthook
        threading.excepthook = _uncaught_in_thread(threading.excepthook)
    _patch_loop(asyncio.BaseEventLoop)
    after_import("uvloop", lambda module: _patch_loop(module.Loop))


def uninstall() -> None:
    """Put back what was found, where nobody has hooked in on top of us since."""
    if getattr(sys.excepthook, "_tocsin", False):
        sys.excepthook = _found.pop("sys", sys.__excepthook__)
    if getattr(threading.excepthook, "_tocsin", False):
        threading.excepthook = _found.pop("threading", threading.__excepthook__)
    uvloop = sys.modules.get("uvloop")
    for kind in (asyncio.BaseEventLoop, getattr(uvloop, "Loop", None)):
        for name in ("call_exception_handler", "create_task"):
            hooked = getattr(kind, name, None)
            if getattr(hooked, "_tocsin", False):
                setattr(kind, name, hooked.__wrapped__)  # type: ignore[union-attr]


_ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def _uncaught(before: _ExceptHook) -> _ExceptHook:
    def excepthook(kind: type[BaseException], exc: BaseException, tb: TracebackType | None) -> None:
        capture = state.current
        if (
            capture is not None
            and isinstance(exc, BaseException)
            and capture.see(Sighting(exc, mechanism="excepthook", handled=False, tb=tb))
        ):
            _note_told()
        before(kind, exc, tb)

    excepthook._tocsin = True  # type: ignore[attr-defined]
    return excepthook


def _note_told() -> None:
    """For `tocsin run`, where it watches a program that has started this process: it need not tell of it again."""
    if told := os.environ.get("TOCSIN_TOLD"):
        with contained("noting what was told"):
            Path(told).touch(mode=0o600)


def _uncaught_in_thread(before: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def excepthook(args: Any) -> None:
        capture = state.current
        # Only the default hook leaves SystemExit out by itself; for a thread it is a way to end.
        if capture is not None and args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            capture.see(Sighting(args.exc_value, mechanism="threading", handled=False, tb=args.exc_traceback))
        before(args)

    excepthook._tocsin = True  # type: ignore[attr-defined]
    return excepthook


def _patch_loop(kind: Any) -> None:
    """On the class, so that loops made later are covered too."""
    original = kind.call_exception_handler
    if getattr(original, "_tocsin", False):
        return

    @functools.wraps(original)
    def call_exception_handler(self: Any, context: dict[str, Any]) -> None:
        with contained("reading what asyncio reports"):
            _note(context)
        with quiet():  # the default handler logs the same again
            original(self, context)

    call_exception_handler._tocsin = True  # type: ignore[attr-defined]
    kind.call_exception_handler = call_exception_handler
    if sys.version_info < (3, 12):
        _patch_create_task(kind)


def _patch_create_task(kind: Any) -> None:
    """A task's context cannot be asked for before Python 3.12; keep it, where there is anything in it."""
    original = kind.create_task

    @functools.wraps(original)
    def create_task(self: Any, coro: Any, **options: Any) -> Any:
        task = original(self, coro, **options)
        if current_scope.get() is not None or current_facts.get() is not None:
            with contained("keeping a task's context"):
                task._tocsin_context = options.get("context") or contextvars.copy_context()
        return task

    create_task._tocsin = True  # type: ignore[attr-defined]
    kind.create_task = create_task


def _note(context: dict[str, Any]) -> None:
    capture = state.current
    if capture is None:
        return
    future = context.get("task") or context.get("future")
    exc = context.get("exception")
    message = str(context.get("message") or "asyncio reports an error")

    def see() -> None:
        seen = Sighting(exc or message, mechanism="asyncio", handled=False, logger="asyncio", place="asyncio")
        seen.attributes = {"log.message": stacks.tidy(message)}
        capture.see(seen)

    its_own = getattr(future, "get_context", None)
    around = its_own() if its_own is not None else getattr(future, "_tocsin_context", None)
    if around is None:
        see()
    else:
        around.copy().run(see)  # a copy: it may be entered already
