"""
Outgoing HTTP calls as breadcrumbs: of http.client, urllib3 (so of requests), httpx and aiohttp.

What the user's call takes, returns and raises stays as it was. A library that sits on another leaves the
crumb for both; queries are left out, and so are parts of a path that look like a key.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

from tocsin import clock
from tocsin.contained import contained, own_threads
from tocsin.exporter.raw import qualname_of
from tocsin.exporter.scrub import MASK
from tocsin.instrumentation import crumbs, state
from tocsin.instrumentation.imports import after_import
from tocsin.instrumentation.patches import Layer, Patches

Function = Callable[..., Any]

_ON_CONNECTION: Final = "_tocsin_call"
_DEFAULT_PORTS: Final = (None, 80, 443)

_patches = Patches()


class _Under(threading.local):
    """How many libraries that tell of a call themselves are at work on this thread's stack."""

    depth: int = 0


_under = _Under()


class _Call:
    """A call under way."""

    __slots__ = ("began", "host", "method", "path")

    def __init__(self, method: object, host: object, port: object, target: object) -> None:
        text = _text(target)
        if "://" in text[:10]:  # the whole address, as a proxy wants it
            parts = urlsplit(text)
            host, port, text = parts.hostname, parts.port, parts.path
        self.method = _text(method)
        self.host = _text(host) if port in _DEFAULT_PORTS else f"{_text(host)}:{port}"
        self.path = _without_keys(text.partition("?")[0].partition("#")[0][: crumbs.KEPT_CHARS]) or "/"
        self.began = time.perf_counter()

    def leave(self, outcome: int | str) -> None:
        """Leave the crumb, once it is known what came of it: a status, or the type of an exception."""
        ms = round((time.perf_counter() - self.began) * 1000, 1)
        crumbs.call(clock.now_ns() / 1e9, (self.method, self.host, self.path), outcome, ms)


def install() -> None:
    """See outgoing calls, now or when the libraries are imported; harmless when called twice."""
    after_import("http.client", _patch_http_client)
    after_import("urllib3.connectionpool", _patch_urllib3)
    after_import("httpx", _patch_httpx)
    after_import("aiohttp.client", _patch_aiohttp)


def uninstall() -> None:
    """Put back what `install` found."""
    _patches.uninstall()


def _patch_http_client(module: ModuleType) -> None:
    for name, make in (("putrequest", _putrequest), ("endheaders", _endheaders), ("getresponse", _getresponse)):
        _patches.install(module.HTTPConnection, name, make)


def _patch_urllib3(module: ModuleType) -> None:
    _patches.install(module.HTTPConnectionPool, "urlopen", _urlopen)


def _patch_httpx(module: ModuleType) -> None:
    _patches.install(module.HTTPTransport, "handle_request", _handle_request)
    _patches.install(module.AsyncHTTPTransport, "handle_async_request", _handle_async_request)


def _patch_aiohttp(module: ModuleType) -> None:
    _patches.install(module.ClientSession, "_request", _request)


def _begin(layer: Layer, make: Callable[[], _Call]) -> _Call | None:
    """A call, where it shall leave a crumb; None else."""
    if not layer.is_on or not crumbs.most or state.current is None or _under.depth:
        return None
    if threading.get_ident() in own_threads:
        return None
    try:
        return make()
    except Exception:  # arguments that are wrong: the library will say so
        return None


def _failed(call: _Call | None, exc: BaseException) -> None:
    if call is not None:
        with contained("leaving a breadcrumb"):
            call.leave(qualname_of(type(exc)))


def _answered(call: _Call | None, response: Any, name: str) -> None:
    if call is not None:
        with contained("leaving a breadcrumb"):
            status = getattr(response, name)
            call.leave(status if type(status) is int else int.__int__(status))


# http.client: three steps, and what is known of the call lies on the connection between them.


def _putrequest(layer: Layer) -> Function:
    def putrequest(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(layer, lambda: _of_http_client(self, args, kwargs))
        if call is not None:
            vars(self)[_ON_CONNECTION] = call
        return layer.before(self, *args, **kwargs)

    return putrequest


def _endheaders(layer: Layer) -> Function:
    def endheaders(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return layer.before(self, *args, **kwargs)
        except BaseException as exc:  # no connection, mostly
            _failed(vars(self).pop(_ON_CONNECTION, None), exc)
            raise

    return endheaders


def _getresponse(layer: Layer) -> Function:
    def getresponse(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = vars(self).pop(_ON_CONNECTION, None)
        try:
            response = layer.before(self, *args, **kwargs)
        except BaseException as exc:
            _failed(call, exc)
            raise
        _answered(call, response, "status")
        return response

    return getresponse


# Libraries that make a call in one step


def _urlopen(layer: Layer) -> Function:
    def urlopen(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(layer, lambda: _of_urllib3(self, args, kwargs))
        if call is None:
            return layer.before(self, *args, **kwargs)
        _under.depth += 1
        try:
            response = layer.before(self, *args, **kwargs)
        except BaseException as exc:
            _failed(call, exc)
            raise
        finally:
            _under.depth -= 1
        _answered(call, response, "status")
        return response

    return urlopen


def _handle_request(layer: Layer) -> Function:
    def handle_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(layer, lambda: _of_httpx(args, kwargs))
        try:
            response = layer.before(self, *args, **kwargs)
        except BaseException as exc:
            _failed(call, exc)
            raise
        _answered(call, response, "status_code")
        return response

    return handle_request


def _handle_async_request(layer: Layer) -> Function:
    async def handle_async_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(layer, lambda: _of_httpx(args, kwargs))
        try:
            response = await layer.before(self, *args, **kwargs)
        except BaseException as exc:
            _failed(call, exc)
            raise
        _answered(call, response, "status_code")
        return response

    return handle_async_request


def _request(layer: Layer) -> Function:
    async def _request(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(layer, lambda: _of_aiohttp(self, args, kwargs))
        try:
            response = await layer.before(self, *args, **kwargs)
        except BaseException as exc:
            _failed(call, exc)
            raise
        _answered(call, response, "status")
        return response

    return _request


Arguments = tuple[Any, ...]
Options = dict[str, Any]


def _of_http_client(connection: Any, args: Arguments, kwargs: Options) -> _Call:
    host, port = connection.host, connection.port
    if tunnel := getattr(connection, "_tunnel_host", None):
        host, port = tunnel, connection._tunnel_port
    return _Call(_given(args, kwargs, 0, "method"), host, port, _given(args, kwargs, 1, "url"))


def _of_urllib3(pool: Any, args: Arguments, kwargs: Options) -> _Call:
    return _Call(_given(args, kwargs, 0, "method"), pool.host, pool.port, _given(args, kwargs, 1, "url"))


def _of_httpx(args: Arguments, kwargs: Options) -> _Call:
    request = _given(args, kwargs, 0, "request")
    return _Call(request.method, request.url.host, request.url.port, request.url.path)


def _of_aiohttp(session: Any, args: Arguments, kwargs: Options) -> _Call:
    url = session._build_url(_given(args, kwargs, 1, "str_or_url"))  # joined with the session's base
    return _Call(_given(args, kwargs, 0, "method"), url.host, url.port, url.path)


def _given(args: Arguments, kwargs: Options, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return str.__str__(value) if isinstance(value, str) else ""


# A key in a path, as webhooks have them: long, with a digit, and no words between hyphens. A UUID is none.
_SEGMENT: Final = re.compile(r"(?<=/)(?=[^/]{0,400}\d)[A-Za-z0-9_-]{20,400}+(?=/|$)")


def _without_keys(path: str) -> str:
    return _SEGMENT.sub(_mask, path)


def _mask(match: re.Match[str]) -> str:
    text = match[0]
    is_word_like = ("-" in text or "_" in text) and (text.islower() or text.isupper())
    return text if is_word_like else MASK
