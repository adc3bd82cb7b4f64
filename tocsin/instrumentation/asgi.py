"""
Requests: one layer around an ASGI application, put in place without a code change where it can be.

A request that does not fail pays for one ``try``, one context variable, a look at its status, and its place
in the table of those under way.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from types import ModuleType
from typing import Any

from tocsin import requests
from tocsin.contained import contained
from tocsin.exporter.raw import traceback_of
from tocsin.instrumentation import ends, state
from tocsin.instrumentation.context import SEEN, Scope, current_scope, is_wsgi, link_scopes, place_of, root_of
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.logs import quiet
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TocsinMiddleware:
    """
    Record what goes wrong in a request, and pass it on untouched.

    ``app.add_middleware(tocsin.TocsinMiddleware)``; `tocsin run` and `tocsin.init` put it around
    Starlette, FastAPI and whatever uvicorn serves by themselves, and two layers record once.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, _watching_lifespan(send))
            return
        outer = current_scope.get()
        # A server may begin the next request of a connection in what the last one has left.
        is_outermost = outer is None or not requests.is_under_way(root_of(outer))
        if is_outermost and requests.is_stopping and not _tells_of_the_stop(scope):
            await _refuse(scope, send)
            return
        status = 0

        def watching(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        if outer is not None and outer is not scope:
            link_scopes(scope, outer)
        token = current_scope.set(scope)
        try:
            work = self.app(scope, receive, watching)
            if is_outermost:
                requests.entered(scope, work)
            await work
            if status >= 500:
                note_status(scope, status)
        except BaseException as exc:  # what is no error is told by capture
            _note_exception(exc, status or 500)
            raise
        finally:
            if is_outermost:
                requests.left(scope)
            current_scope.reset(token)


_HEADERS = (
    (b"content-type", b"application/json"),
    (b"content-length", str(len(requests.REFUSED)).encode()),
    (b"retry-after", str(requests.RETRY_AFTER_S).encode()),
    (b"connection", b"close"),
)


def _tells_of_the_stop(scope: Scope) -> bool:
    """Our own health and liveness, wherever they are mounted, are asked while a process stops."""
    return str(scope.get("path", "")).endswith(("/api/debug/health", "/livez"))


async def _refuse(scope: Scope, send: Send) -> None:
    """Say that somebody else will answer, soon."""
    kind = "http.response"
    if scope["type"] == "websocket":
        kind = "websocket.http.response"
        if kind not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1012})
            return
    await send({"type": f"{kind}.start", "status": 503, "headers": list(_HEADERS)})
    await send({"type": f"{kind}.body", "body": requests.REFUSED})


def _note_exception(exc: BaseException, status: int) -> None:
    capture = state.current
    if capture is not None:
        tb = traceback_of(exc)
        tb = tb and tb.tb_next  # without this layer's own frame, which tells nobody anything
        capture.see(Sighting(exc, mechanism="asgi", handled=False, status=status, tb=tb))


def _watching_lifespan(send: Send) -> Send:
    """See what keeps an application from starting: frameworks tell the server a text, and keep the exception."""

    async def watching(message: Message) -> None:
        exc = sys.exc_info()[1] if message["type"].endswith(".failed") else None
        if exc is None or state.current is None:
            await send(message)
            return
        is_last = message["type"] == "lifespan.startup.failed"  # the server ends, with an exit code that says less
        severity = Severity.CRITICAL if is_last else Severity.HIGH
        if state.current.see(Sighting(exc, mechanism="asgi", handled=False, severity=severity)) and is_last:
            ends.note_told()
        with quiet():  # the server logs the text
            await send(message)

    return watching


def note_status(scope: Scope, status: int) -> None:
    """A response that says the server failed, where nothing that anyone saw in the request says so."""
    capture = state.current
    if capture is None or root_of(scope).get(SEEN):
        return
    with contained("reading a request"):
        place = place_of(scope)
        text = f"{place} answered {status}"
        capture.see(Sighting(text, mechanism=gateway(), handled=False, status=status, place=place))


def note_handled(exc: BaseException, status: object) -> None:
    """An exception that somebody turned into a response."""
    capture = state.current
    if capture is None or not isinstance(status, int):
        return
    if status >= 500:
        capture.see(Sighting(exc, mechanism=gateway(), handled=True, severity=Severity.HIGH, status=status))
    elif status >= 400 and state.settings is not None and state.settings.capture_4xx:
        capture.see(Sighting(exc, mechanism=gateway(), handled=True, status=status))


def gateway() -> str:
    """By which of the two the request came that is under way, if any is."""
    scope = current_scope.get()
    return "wsgi" if scope is None or is_wsgi(scope) else "asgi"


def install() -> None:
    """Put the layer in place, now or when the frameworks are imported."""
    after_import("starlette.applications", lambda module: _patch_build(module.Starlette))
    after_import("fastapi.applications", lambda module: _patch_build(module.FastAPI))
    after_import("uvicorn.config", _patch_uvicorn)
    after_import("opentelemetry.instrumentation.asgi", _patch_opentelemetry)


def _patch_build(kind: Any) -> None:
    """Wrap what a Starlette application builds: outside all middleware, the handlers for errors within."""
    original = kind.__dict__.get("build_middleware_stack")
    if original is None or getattr(original, "_tocsin", False):
        return

    @functools.wraps(original)
    def build_middleware_stack(self: Any) -> Any:
        stack = original(self)
        if state.current is None or isinstance(stack, TocsinMiddleware):
            return stack
        with contained("wrapping the handlers for errors"):
            _watch_handlers(stack)
        return TocsinMiddleware(_traced(stack))

    build_middleware_stack._tocsin = True  # type: ignore[attr-defined]
    kind.build_middleware_stack = build_middleware_stack


def _watch_handlers(stack: Any) -> None:
    """
    See the exceptions that a handler turns into a 5xx response: they never reach the outer layer.

    Starlette keeps the handlers in two dictionaries of its ExceptionMiddleware, which it also hands
    to the routes; the values are wrapped in place.
    """
    layer = stack
    for _ in range(100):
        for name in ("_exception_handlers", "_status_handlers"):
            handlers = getattr(layer, name, None)
            if isinstance(handlers, dict):
                for kind, handler in list(handlers.items()):
                    if handler is not None and not getattr(handler, "_tocsin", False):
                        handlers[kind] = _watching_handler(handler)
        layer = getattr(layer, "app", None)
        if layer is None:
            return


def _watching_handler(handler: Any) -> Any:
    watching: Any
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):

        @functools.wraps(handler)
        async def watching_async(request: Any, exc: Exception) -> Any:
            response = await handler(request, exc)
            note_handled(exc, getattr(response, "status_code", None))
            return response

        watching = watching_async
    else:

        @functools.wraps(handler)
        def watching_sync(request: Any, exc: Exception) -> Any:
            response = handler(request, exc)
            note_handled(exc, getattr(response, "status_code", None))
            return response

        watching = watching_sync

    watching._tocsin = True
    return watching


def _patch_uvicorn(module: ModuleType) -> None:
    """Wrap what uvicorn serves: the way to applications of no framework that is known here."""
    original = module.Config.load
    if getattr(original, "_tocsin", False):
        return

    @functools.wraps(original)
    def load(self: Any) -> None:
        original(self)
        with contained("wrapping the application"):
            app = getattr(self, "loaded_app", None)
            if app is not None and state.current is not None and not _is_wrapped(app) and self.interface != "wsgi":
                self.loaded_app = TocsinMiddleware(_traced(app))

    load._tocsin = True  # type: ignore[attr-defined]
    module.Config.load = load


def _is_wrapped(app: Any) -> bool:
    """Whether the layer is or will be inside: uvicorn has put its own middleware around the application."""
    for _ in range(20):
        if isinstance(app, TocsinMiddleware) or getattr(type(app), "build_middleware_stack", None):
            return True
        app = getattr(app, "app", None)
        if app is None:
            return False
    return False


def _patch_opentelemetry(module: ModuleType) -> None:
    """A second layer inside OpenTelemetry's: there its span is still the current one."""
    original = module.OpenTelemetryMiddleware.__init__
    if getattr(original, "_tocsin", False):
        return

    @functools.wraps(original)
    def init(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:
        original(self, app if isinstance(app, TocsinMiddleware) else TocsinMiddleware(app), *args, **kwargs)

    init._tocsin = True  # type: ignore[attr-defined]
    module.OpenTelemetryMiddleware.__init__ = init


def _traced(app: Any) -> Any:
    """With `--traces`: OpenTelemetry's ASGI instrumentation around the application."""
    if state.settings is None or not state.settings.traces:
        return app
    with contained("adding the OpenTelemetry ASGI instrumentation"):
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415  (optional)

        return OpenTelemetryMiddleware(app)
    return app
