"""Where an error happened: the request, the trace, the thread, and what the user's code says of it."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, Token
from itertools import islice
from types import TracebackType
from typing import Any, Final

from tocsin import semconv
from tocsin.contained import pass_on
from tocsin.exporter.fingerprint import template
from tocsin.exporter.raw import attributes_of, get, traceback_of
from tocsin.exporter.scrub import BREADTH_LIMIT, scrub_query, scrub_text, scrub_url, scrub_value
from tocsin.text import clean

Scope = MutableMapping[str, Any]

current_scope: ContextVar[Scope | None] = ContextVar("tocsin_scope", default=None)
"""The ASGI scope or the WSGI environ of the request under way: all that the good path pays for."""

current_facts: ContextVar[Mapping[str, Any] | None] = ContextVar("tocsin_facts", default=None)
"""What the user's code says by `context`, joined."""

_ON_EXCEPTION: Final = "__tocsin_context__"
_TRACE: Final = "tocsin.trace"
_WSGI: Final = "wsgi.version"
_OUTER: Final = "tocsin.outer"
SEEN: Final = "tocsin.seen"
"""Stands in the scope of a request in which an error was seen that tells of its failure."""

ROUTE: Final = "tocsin.route"
"""Stands there too: the route's template, where a framework keeps it elsewhere."""

HEADERS: Final = {
    b"host",
    b"user-agent",
    b"content-type",
    b"content-length",
    b"accept",
    b"accept-language",
    b"origin",
    b"referer",
    b"x-request-id",
    b"x-forwarded-for",
    b"x-forwarded-proto",
}
"""Request headers that are kept; none of them carries a secret by its purpose, and all are scrubbed."""


class context:  # noqa: N801  (reads as a statement: `with tocsin.context(user_id=…):`)
    """
    Join facts to every error raised inside: ``with tocsin.context(user_id="u7"): …``.

    Facts of an inner `context` win. They travel with an exception that leaves the block, and into
    threads and tasks started in it. Works with ``async with`` as well.
    """

    __slots__ = ("_facts", "_token")

    def __init__(self, **facts: Any) -> None:
        self._facts = facts
        self._token: Token[Mapping[str, Any] | None] | None = None

    def __enter__(self) -> None:
        self._token = current_facts.set({**(current_facts.get() or {}), **self._facts})

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if exc is not None:
            attach(exc, current_facts.get() or {})
        if self._token is not None:
            try:
                current_facts.reset(self._token)
            except ValueError:  # left in another context than entered, as a generator may be
                current_facts.set(None)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, tb)


class _Travelling(dict[str, Any]):
    """Facts on an exception; left out when it is pickled or copied, since they may be no data."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, ()


def attach(exc: BaseException, facts: Mapping[str, Any]) -> None:
    """Let facts travel with an exception; what it carries already comes from further inside and stays."""
    carried = attributes_of(exc)
    dict.__setitem__(carried, _ON_EXCEPTION, _Travelling({**facts, **_carried_facts(carried)}))


def _carried_facts(carried: dict[str, Any]) -> dict[str, Any]:
    """What was put on an exception here, or has come with it from another process."""
    found = get(carried, _ON_EXCEPTION)
    return found if type(found) is _Travelling or type(found) is dict else {}


def as_facts(said: object) -> dict[str, Any]:
    """What a caller gave as facts, which may be no mapping, or one that raises when it is read."""
    if said is None:
        return {}
    try:
        if isinstance(said, Mapping):  # which may have no end
            return {key: said[key] for key in islice(said, BREADTH_LIMIT + 1)}
    except BaseException as problem:  # foreign code, asked by us
        pass_on(problem)
        return {"context": f"<{type(said).__name__} that cannot be read>"}
    return {"context": said}


def facts_of(exc: BaseException | None) -> dict[str, Any]:
    """What the user's code said about the place and time of an error."""
    around = current_facts.get()
    carried = _carried_facts(attributes_of(exc)) if exc is not None else {}
    if not around and not carried:
        return {}
    return {**(around or {}), **carried}


def request_attributes(scope: Scope, status: int | None) -> dict[str, Any]:
    """A request as OpenTelemetry's HTTP attributes; worked out only when something failed in it."""
    if is_wsgi(scope):
        scope = _as_asgi(scope)
    found: dict[str, Any] = {}
    if scope.get("type") == "http":
        found[semconv.HTTP_METHOD] = clean(str(scope.get("method", "")), 20)
    if route := route_of(scope):
        found[semconv.HTTP_ROUTE] = clean(route, 500)
    found[semconv.URL_PATH] = clean(scrub_text(str(scope.get("root_path", "")) + _path(scope)), 1000)
    found[semconv.URL_SCHEME] = str(scope.get("scheme", ""))
    if query := scope.get("query_string"):
        found[semconv.URL_QUERY] = clean(scrub_query(bytes(query[:4096]).decode("latin-1")), 1000)
    client = scope.get("client")
    if client:
        found[semconv.CLIENT_ADDRESS] = clean(str(client[0]), 100)
    if status is not None:
        found[semconv.HTTP_STATUS] = status
    for name, value in list(scope.get("headers") or ())[:100]:
        lowered = bytes(name).lower()
        if lowered in HEADERS:
            text = bytes(value[:1024]).decode("latin-1")
            text = scrub_url(text) if lowered in (b"referer", b"origin") else scrub_text(text)
            if lowered == b"user-agent":
                found[semconv.USER_AGENT] = clean(text, 500)
            else:
                found[semconv.HTTP_REQUEST_HEADER + lowered.decode("latin-1")] = clean(text, 500)
    return found


def _path(scope: Scope) -> str:
    path, root = str(scope.get("path", "")), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root) else path


def is_wsgi(scope: Scope) -> bool:
    """Whether it is a WSGI environ."""
    return _WSGI in scope


def _as_asgi(environ: Scope) -> Scope:
    """
    A WSGI environ as ASGI has a request.

    Source: PEP 3333, environ variables; its texts are bytes that were read as Latin-1.
    """
    root, path = (
        str(environ.get(name, "")).encode("latin-1", "replace").decode("utf-8", "replace")
        for name in ("SCRIPT_NAME", "PATH_INFO")
    )
    headers = []
    for header in HEADERS:
        name = header.decode("latin-1").upper().replace("-", "_")
        value = environ.get(name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}")
        if value:
            headers.append((header, str(value).encode("latin-1", "replace")))
    return {
        "type": "http",
        "method": environ.get("REQUEST_METHOD", ""),
        "scheme": environ.get("wsgi.url_scheme", ""),
        "root_path": root,
        "path": root + path,
        "query_string": str(environ.get("QUERY_STRING", "")).encode("latin-1", "replace"),
        "client": (environ["REMOTE_ADDR"],) if environ.get("REMOTE_ADDR") else None,
        "headers": headers,
        ROUTE: route_of(environ),
    }


def place_of(scope: Scope) -> str:
    """``GET /orders/{id}``; of a path without a template, which holds ids and secrets, only its shape."""
    if is_wsgi(scope):
        scope = _as_asgi(scope)
    method = scope.get("method") or str(scope.get("type", "")).upper()
    route = route_of(scope) or template(scrub_text(str(scope.get("path", ""))))
    return clean(f"{clean(str(method), 20)} {route}", 500)


def route_of(scope: Scope) -> str | None:
    """The route's template; frameworks of Starlette's family leave the route that matched in the scope."""
    if isinstance(said := scope.get(ROUTE), str):
        return said
    if is_wsgi(scope):  # werkzeug leaves its request there
        rule = getattr(getattr(scope.get("werkzeug.request"), "url_rule", None), "rule", None)
        return rule if isinstance(rule, str) else None
    route = scope.get("route")
    # FastAPI since 0.13x keeps what `include_router` adds, such as a prefix, beside the route.
    included = (scope.get("fastapi") or {}).get("effective_route_context")
    if included is not None and getattr(included, "original_route", None) is route:
        route = included
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    if not isinstance(template, str):
        return None
    if hasattr(route, "routes"):
        template = ""  # a mount, whose path is in the root path by now
    prefix = str(scope.get("root_path", ""))
    prefix = prefix.removeprefix(str(scope.get("app_root_path", "")))  # what is left was added by mounts
    for name, value in (scope.get("path_params") or {}).items():
        if f"{{{name}}}" not in template:
            prefix = f"{prefix}/".replace(f"/{value}/", f"/{{{name}}}/", 1)[:-1]
    return f"{prefix}{template}"


def trace_of(scope: Scope | None) -> tuple[str | None, str | None]:
    """
    The trace and span ids that an error belongs to, as hex.

    The current span's, else the ``traceparent`` header's, else one made for the request, so that all
    errors of a request share one. The ids are kept in the scope, where threads find them too.
    """
    ids = span_ids()
    if scope is None:
        return ids or (None, None)
    scope = root_of(scope)
    known: tuple[str, str | None] | None = scope.get(_TRACE)
    if ids is not None:
        if known is None:
            scope[_TRACE] = ids
        return ids
    if known is None:
        known = _from_header(scope) or (os.urandom(16).hex(), None)
        scope[_TRACE] = known
    return known


def link_scopes(scope: Scope, outer: Scope) -> None:
    """Let an application that was called with a copy of a scope belong to the same request."""
    root = root_of(outer)
    if _OUTER not in scope and root is not scope:  # roots only, or a circle could come of it
        scope[_OUTER] = root


def root_of(scope: Scope) -> Scope:
    """The scope that the request came in with."""
    while (outer := scope.get(_OUTER)) is not None:
        scope = outer
    return scope


def span_ids() -> tuple[str, str] | None:
    """The current span's ids; None while nobody has loaded OpenTelemetry's tracing, or no span is open."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    try:
        span = trace.get_current_span().get_span_context()
    except AttributeError:  # it is being imported just now
        return None
    if not span.is_valid:
        return None
    return f"{span.trace_id:032x}", f"{span.span_id:016x}"


def _from_header(scope: Scope) -> tuple[str, str] | None:
    """Ids from the ``traceparent`` header. Source: W3C Trace Context, section 3.2."""
    parts = _traceparent(scope).split("-")
    if len(parts) < 4 or len(parts[1]) != 32 or len(parts[2]) != 16:
        return None
    try:
        is_valid = int(parts[1], 16) and int(parts[2], 16)
    except ValueError:
        return None
    return (parts[1].lower(), parts[2].lower()) if is_valid else None


def _traceparent(scope: Scope) -> str:
    if is_wsgi(scope):
        return str(scope.get("HTTP_TRACEPARENT", ""))[:64]
    for name, value in scope.get("headers") or ():
        if bytes(name).lower() == b"traceparent":
            return bytes(value[:64]).decode("latin-1")
    return ""


def span_attributes() -> dict[str, Any]:
    """What the current span was told so far, where OpenTelemetry's SDK records it."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    try:
        attributes = getattr(trace.get_current_span(), "attributes", None)
    except AttributeError:
        return {}
    if not attributes:
        return {}
    return {clean(str(key), 100): scrub_value(value, str(key)) for key, value in list(attributes.items())[:50]}


def where() -> dict[str, Any]:
    """The thread and the task."""
    ident = threading.get_ident()
    # Not `current_thread`: of a thread that it does not know it makes one, under a lock that may be held here.
    thread = threading._active.get(ident)  # type: ignore[attr-defined]
    name = thread.name if thread is not None else "unknown"
    found: dict[str, Any] = {semconv.THREAD_NAME: clean(str(name), 100), semconv.THREAD_ID: ident}
    task = current_task()
    if task is not None:
        found[semconv.TASK_NAME] = clean(task.get_name(), 100)
    return found


def running_loop() -> Any:
    """The event loop that runs in this thread; None without one, and in a program that has not loaded asyncio."""
    events = sys.modules.get("asyncio.events")
    running = getattr(events, "_get_running_loop", None)  # missing while it is being imported just now
    return running() if running is not None else None


def current_task() -> Any:
    """The task that runs in this thread; None outside of one."""
    loop = running_loop()
    return sys.modules["asyncio"].current_task(loop) if loop is not None else None


def unit_key() -> str:
    """A name for the unit of work outside a request: the thread and the task."""
    task = current_task()
    return f"{threading.get_ident()}:{id(task) if task is not None else 0}"


# Threads and pool jobs carry the context of who started them. Only tocsin's own variables are carried:
# what other variables do in a thread is the user's business.


def install() -> None:
    """Let new threads and pool jobs carry the request and the facts; harmless when called twice."""
    for kind, name, carrying in _CARRIERS:
        original = getattr(kind, name)
        if not getattr(original, "_tocsin", False):
            setattr(kind, name, carrying(original))


def uninstall() -> None:
    """Put back what `install` found, unless someone else has wrapped it since."""
    for kind, name, _ in _CARRIERS:
        hooked = getattr(kind, name)
        if getattr(hooked, "_tocsin", False):
            setattr(kind, name, hooked.__wrapped__)


def _carried() -> tuple[Scope | None, Mapping[str, Any] | None] | None:
    scope, facts = current_scope.get(), current_facts.get()
    if scope is None and facts is None:
        return None
    if scope is not None:
        trace_of(scope)  # while the span is still the current one
    return scope, facts


def _carrying_start(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    @functools.wraps(original)
    def start(self: threading.Thread) -> None:
        carried = None if _serves_a_pool(self) else _carried()
        if carried is not None:
            run = self.run

            def run_with_context() -> None:
                current_scope.set(carried[0])
                current_facts.set(carried[1])
                run()

            self.run = run_with_context  # type: ignore[method-assign]
        original(self)

    start._tocsin = True  # type: ignore[attr-defined]
    return start


def _serves_a_pool(thread: threading.Thread) -> bool:
    """
    Whether a thread works off the jobs of many: each job brings its own context.

    A worker that is started while a request submits a job would belong to that request for life.
    """
    target = getattr(thread, "_target", None)
    return getattr(target, "__module__", None) == "concurrent.futures.thread"


def _carrying_submit(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        carried = _carried()
        if carried is None:
            return original(self, fn, *args, **kwargs)
        return original(self, _run_with, carried, fn, *args, **kwargs)

    submit._tocsin = True  # type: ignore[attr-defined]
    return submit


def _run_with(
    carried: tuple[Scope | None, Mapping[str, Any] | None], fn: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    scope_token, facts_token = current_scope.set(carried[0]), current_facts.set(carried[1])
    try:
        return fn(*args, **kwargs)
    finally:
        current_scope.reset(scope_token)
        current_facts.reset(facts_token)


def carried_by(exc: BaseException) -> tuple[Scope | None, Mapping[str, Any] | None] | None:
    """What a pool's job carried that an exception has left: its traceback still knows."""
    tb = traceback_of(exc)
    for _ in range(4):
        if tb is None:
            break
        if tb.tb_frame.f_code is _run_with.__code__:
            found: tuple[Scope | None, Mapping[str, Any] | None] = tb.tb_frame.f_locals["carried"]
            return found
        tb = tb.tb_next
    return None


def run_as(carried: tuple[Scope | None, Mapping[str, Any] | None] | None, function: Callable[[], object]) -> None:
    """Call a function where a job was started that carried this."""
    if carried is None:
        function()
    else:
        _run_with(carried, function)


_CARRIERS: Final[list[tuple[type, str, Callable[[Any], Any]]]] = [
    (threading.Thread, "start", _carrying_start),
    (ThreadPoolExecutor, "submit", _carrying_submit),
]
