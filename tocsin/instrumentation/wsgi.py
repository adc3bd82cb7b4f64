"""
Requests of WSGI applications: one layer around each, and what Flask and Django answer before it gets there.

The layer stands where the application is called: in the frameworks, so that any server has it, and in the
servers, for applications of no framework that is known here. The inner of two sees that there is an outer one.
Django's hooks serve its ASGI side as well.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextvars import Token
from types import FrameType, ModuleType
from typing import Any, Final

from tocsin import requests
from tocsin.contained import contained
from tocsin.exporter.raw import traceback_of
from tocsin.instrumentation import state
from tocsin.instrumentation.asgi import TocsinMiddleware, gateway, note_handled, note_status
from tocsin.instrumentation.context import (
    ROUTE,
    Scope,
    current_scope,
    link_scopes,
    route_of,
)
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.patches import Layer, Patches
from tocsin.instrumentation.state import Sighting
from tocsin.model import Severity

StartResponse = Callable[..., Any]
App = Callable[[Scope, StartResponse], Iterable[bytes]]


def serve(app: App, environ: Scope, start_response: StartResponse) -> Iterable[bytes]:
    """Answer one request, and record what goes wrong in it; what is raised passes untouched."""
    outer = current_scope.get()
    if outer is environ or state.current is None:
        return app(environ, start_response)
    if outer is not None:
        link_scopes(environ, outer)
    elif requests.is_stopping:
        return _refuse(start_response)
    answer = _Answer(environ, start_response, outer is None)
    token = current_scope.set(environ)
    try:
        body = app(environ, answer.start)
        if _is_made(body, environ):
            answer.finish()
            return body
        answer.body = body
    except BaseException as exc:  # what is no error is told by capture
        answer.note(exc)
        answer.finish()
        raise
    finally:
        current_scope.reset(token)
    return answer


class _Answer:
    """What an application answers one request with; its body may still be in the making."""

    body: Iterable[bytes]
    _status = ""

    def __init__(self, environ: Scope, start: StartResponse, is_outermost: bool) -> None:
        self._environ = environ
        self._start = start
        self._is_counted = is_outermost
        if is_outermost:
            requests.entered(environ, threading.get_ident())

    def start(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        """The server's ``start_response``; an application that answers its own failure tells of it here."""
        self._status = status
        if "werkzeug.request" in self._environ:
            _keep_route(self._environ)
        if not exc_info:
            return self._start(status, headers)
        self.note(exc_info[1])
        return self._start(status, headers, exc_info)

    def __iter__(self) -> Iterator[bytes]:
        """The body, each step of it in its request: between the steps the thread is the server's."""
        environ = self._environ
        token: Token[Scope | None] | None = current_scope.set(environ)
        try:
            for chunk in self.body:
                current_scope.reset(token)  # type: ignore[arg-type]
                token = None
                yield chunk
                token = current_scope.set(environ)
        except GeneratorExit:
            raise
        except BaseException as exc:
            self.note(exc)
            raise
        finally:
            if token is not None:
                current_scope.reset(token)

    def close(self) -> None:
        """The server calls it at the end, whatever the end is."""
        token = current_scope.set(self._environ)
        try:
            if (close := getattr(self.body, "close", None)) is not None:
                close()
        except BaseException as exc:
            self.note(exc)
            raise
        finally:
            self.finish()
            current_scope.reset(token)

    def __del__(self) -> None:
        if self._is_counted:  # the server has not closed it
            requests.left(self._environ)

    def note(self, exc: BaseException) -> None:
        """See an exception that leaves the application."""
        capture = state.current
        if capture is not None:
            tb = traceback_of(exc)
            tb = (tb and tb.tb_next) or tb  # without this layer's own frame, which tells nobody anything
            seen = Sighting(exc, mechanism="wsgi", handled=False, status=self._code() or 500, tb=tb)
            if isinstance(exc, SystemExit):
                seen.severity = Severity.CRITICAL
            capture.see(seen)

    def finish(self) -> None:
        """Nothing more is to come; within the request."""
        if self._is_counted:
            self._is_counted = False
            requests.left(self._environ)
        if self._status[:1] == "5":
            note_status(self._environ, self._code())

    def _code(self) -> int:
        return int(self._status[:3]) if self._status[:3].isdigit() else 0


def _keep_route(environ: Scope) -> None:
    """Flask takes its request away when the view has returned, before the body is made."""
    if route := route_of(environ):
        environ[ROUTE] = route


def watching(app: App) -> App:
    """An application with the layer around it."""

    def watched(environ: Scope, start_response: StartResponse) -> Iterable[bytes]:
        return serve(app, environ, start_response)

    return watched


def _is_made(body: object, environ: Scope) -> bool:
    """Whether a body holds no code that is still to run, or is a file, which the server wants to see as it is."""
    if type(body) in (list, tuple):
        return True
    file_wrapper = environ.get("wsgi.file_wrapper")
    if file_wrapper is None:
        return False
    return isinstance(body, file_wrapper) if isinstance(file_wrapper, type) else True  # what a function made: who knows


def _refuse(start_response: StartResponse) -> Iterable[bytes]:
    """Say that somebody else will answer, soon."""
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(requests.REFUSED))),
        ("Retry-After", str(requests.RETRY_AFTER_S)),
    ]
    start_response("503 Service Unavailable", headers)
    return [requests.REFUSED]


def _note_unhandled(exc: BaseException | None) -> None:
    """An exception that a framework turns into its page for errors, since nobody else had an answer."""
    capture = state.current
    if capture is not None and exc is not None:
        capture.see(Sighting(exc, mechanism=gateway(), handled=False, status=500))


# Where the layer is put, and the hooks of the frameworks.

_UID: Final = "tocsin"
_patches = Patches()


def install() -> None:
    """Put layer and hooks in place, now or when servers and frameworks are imported."""
    for name, then in _PLACES.items():
        after_import(name, then)


def uninstall() -> None:
    """Put back what was found, where nobody has hooked in on top of us since."""
    _patches.uninstall()
    if (flask := sys.modules.get("flask.signals")) is not None:
        flask.got_request_exception.disconnect(_flask_fails)
    if (django := sys.modules.get("django.core.signals")) is not None:
        django.got_request_exception.disconnect(dispatch_uid=_UID)


def _called(layer: Layer) -> Callable[..., Any]:
    """``__call__`` of a framework's application."""

    def __call__(self: Any, environ: Scope, start_response: StartResponse) -> Iterable[bytes]:  # noqa: N807
        if not layer.is_on:
            return layer.before(self, environ, start_response)  # type: ignore[no-any-return]
        return serve(functools.partial(layer.before, self), environ, start_response)

    return __call__


def _loaded(layer: Layer) -> Callable[..., Any]:
    """``load_wsgi`` of a gunicorn worker."""

    def load_wsgi(self: Any) -> None:
        layer.before(self)
        if layer.is_on:
            self.wsgi = watching(self.wsgi)

    return load_wsgi


def _aborted(layer: Layer) -> Callable[..., Any]:
    """``handle_abort`` of a gunicorn worker: it has stood still for longer than its timeout, and is to exit."""

    def handle_abort(self: Any, sig: int, frame: FrameType | None) -> Any:
        try:
            return layer.before(self, sig, frame)
        except SystemExit as exc:
            if layer.is_on and state.current is not None:
                with contained("reading what gunicorn ends"):
                    _explain(exc, f"gunicorn ended this worker, which stood still for {self.cfg.timeout} s", frame)
            raise

    return handle_abort


def _explain(exc: SystemExit, text: str, frame: FrameType | None) -> None:
    """Say why in the exception, which says ``1`` and leaves the request by itself; say it here where there is none."""
    exc.args = (text,)  # its code stays
    scope = current_scope.get()
    if scope is not None:
        _keep_route(scope)
    elif state.current is not None:
        seen = Sighting(text, mechanism="wsgi", handled=False, severity=Severity.CRITICAL, place="gunicorn worker")
        seen.stack = "".join(traceback.format_stack(frame, 100)) if frame is not None else None
        state.current.see(seen)


def _made(layer: Layer) -> Callable[..., Any]:
    """``__init__`` of werkzeug's server."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        layer.before(self, *args, **kwargs)
        if layer.is_on:
            self.app = watching(self.app)

    return __init__


def _run(layer: Layer) -> Callable[..., Any]:
    """``run`` of wsgiref's handler, which is also Django's own server's."""

    def run(self: Any, application: App) -> Any:
        return layer.before(self, watching(application) if layer.is_on else application)

    return run


# Flask


def _hook_flask_signals(module: ModuleType) -> None:
    module.got_request_exception.connect(_flask_fails)


def _flask_fails(sender: Any, exception: BaseException, **_: Any) -> None:
    with contained("reading what Flask reports"):
        _note_unhandled(exception)


def _found_handler(layer: Layer) -> Callable[..., Any]:
    """
    ``_find_error_handler``, through which every exception of a request goes that Flask has an answer to.

    What is around it (``handle_user_exception``) raises on, and a frame of ours would stand in the traceback.
    """

    def _find_error_handler(self: Any, e: Any, *args: Any) -> Any:
        handler = layer.before(self, e, *args)
        if not layer.is_on:
            return handler
        exc = getattr(e, "original_exception", None) or e
        if handler is not None:
            return _watching_handler(handler, exc)
        with contained("reading what Flask answers"):
            note_handled(exc, getattr(e, "code", None))  # an HTTPException is an answer itself
        return None

    return _find_error_handler


def _watching_handler(handler: Any, exc: BaseException) -> Any:
    if inspect.iscoroutinefunction(handler):

        @functools.wraps(handler)
        async def watching_async(error: Any) -> Any:
            answer = await handler(error)
            with contained("reading what Flask answers"):
                note_handled(exc, _status_of(answer))
            return answer

        return watching_async

    @functools.wraps(handler)
    def watching_sync(error: Any) -> Any:
        answer = handler(error)
        with contained("reading what Flask answers"):
            note_handled(exc, _status_of(answer))
        return answer

    return watching_sync


def _status_of(answer: Any) -> object:
    """Of what a handler in Flask returns: a response, an exception that is one, or a body with a status beside it."""
    if isinstance(answer, tuple):
        if len(answer) > 1 and isinstance(answer[1], int):
            return int(answer[1])
        answer = answer[0] if answer else None
    return getattr(answer, "status_code", None) or getattr(answer, "code", None)


# Django


def _hook_django_signals(module: ModuleType) -> None:
    module.got_request_exception.connect(_django_fails, dispatch_uid=_UID)


def _django_fails(**_: Any) -> None:
    with contained("reading what Django reports"):
        _note_unhandled(sys.exc_info()[1])


def _resolved(layer: Layer) -> Callable[..., Any]:
    """``resolve_request``: the route is kept in the request's scope, where ours is looked for."""

    def resolve_request(self: Any, request: Any) -> Any:
        match = layer.before(self, request)
        scope = current_scope.get()
        if scope is not None and layer.is_on:
            scope[ROUTE] = getattr(match, "route", None)
        return match

    return resolve_request


def _processed(layer: Layer) -> Callable[..., Any]:
    """``process_exception_by_middleware``: a middleware may have an answer."""

    def process_exception_by_middleware(self: Any, exception: BaseException, request: Any) -> Any:
        response = layer.before(self, exception, request)
        if response is not None and layer.is_on:
            with contained("reading what Django answers"):
                note_handled(exception, getattr(response, "status_code", None))
        return response

    return process_exception_by_middleware


def _responded(layer: Layer) -> Callable[..., Any]:
    """``response_for_exception``: 404 for ``Http404``, 403 for ``PermissionDenied`` and so on."""

    def response_for_exception(request: Any, exc: BaseException) -> Any:
        response = layer.before(request, exc)
        if layer.is_on:
            with contained("reading what Django answers"):
                note_handled(exc, getattr(response, "status_code", None))
        return response

    return response_for_exception


def _called_async(layer: Layer) -> Callable[..., Any]:
    """``__call__`` of Django's ASGI application, for servers that are not known here."""

    async def __call__(self: Any, scope: Scope, receive: Any, send: Any) -> None:  # noqa: N807
        app: Any = functools.partial(layer.before, self)
        if layer.is_on and state.current is not None and current_scope.get() is not scope:
            app = TocsinMiddleware(app)
        await app(scope, receive, send)

    return __call__


_PLACES: Final[dict[str, Callable[[ModuleType], None]]] = {
    "gunicorn.workers.base": lambda module: _patches.install(module.Worker, "handle_abort", _aborted),
    "gunicorn.workers.sync": lambda module: _patches.install(module.SyncWorker, "load_wsgi", _loaded),
    "gunicorn.workers.gthread": lambda module: _patches.install(module.ThreadWorker, "load_wsgi", _loaded),
    "gunicorn.workers.base_async": lambda module: _patches.install(module.AsyncWorker, "load_wsgi", _loaded),
    "wsgiref.handlers": lambda module: _patches.install(module.BaseHandler, "run", _run),
    "werkzeug.serving": lambda module: _patches.install(module.BaseWSGIServer, "__init__", _made),
    "flask.app": lambda module: _patch_flask(module.Flask),
    "flask.signals": _hook_flask_signals,
    "django.core.signals": _hook_django_signals,
    "django.core.handlers.wsgi": lambda module: _patches.install(module.WSGIHandler, "__call__", _called),
    "django.core.handlers.asgi": lambda module: _patches.install(module.ASGIHandler, "__call__", _called_async),
    "django.core.handlers.base": lambda module: _patch_django(module.BaseHandler),
    "django.core.handlers.exception": lambda module: _patches.install(module, "response_for_exception", _responded),
}


def _patch_flask(kind: Any) -> None:
    _patches.install(kind, "__call__", _called)
    _patches.install(kind, "_find_error_handler", _found_handler)


def _patch_django(kind: Any) -> None:
    _patches.install(kind, "resolve_request", _resolved)
    _patches.install(kind, "process_exception_by_middleware", _processed)
