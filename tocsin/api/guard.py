"""What holds for every answer: the host is ours, the headers are strict, other origins stay out."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tocsin import requests
from tocsin.api.calls import House, failure
from tocsin.settings import Settings

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": browsers then send forms of our own page with the origin "null".
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
_RAW_NAMES = frozenset(name for name, _ in _RAW_HEADERS)
_NO_STORE = "no-store"
_FOR_EVERY_HOST = ("/livez", "/readyz")  # load balancers ask by address
_WHILE_STOPPING = ("/livez", "/readyz", "/api/debug/health")


class Guard:
    """Wraps the whole application, so that no answer leaves without what is promised here."""

    def __init__(self, app: ASGIApp, house: House) -> None:
        self._app = app
        self._house = house
        self._hosts = _hosts(house.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if requests.is_under_way(scope):  # entered by the layer around the application that this is mounted in
            await self._answer(scope, receive, send)
            return
        work = self._answer(scope, receive, send)
        requests.entered(scope, work)
        try:
            await work
        finally:
            requests.left(scope)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        origin = self._allowed_origin(request.headers)

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                # All at once: set one by one they would cost more than most calls.
                own = [pair for pair in message.get("headers", ()) if pair[0] not in _RAW_NAMES]
                message["headers"] = own + _RAW_HEADERS
                headers = MutableHeaders(scope=message)
                headers.setdefault("cache-control", _NO_STORE)
                if scope["scheme"] == "https":
                    headers["strict-transport-security"] = "max-age=31536000"
                if self._house.settings.cors_origins:
                    headers.add_vary_header("Origin")
                if origin:
                    headers["access-control-allow-origin"] = origin
                    headers["cross-origin-resource-policy"] = "cross-origin"
            await send(message)

        answer = self._stop(request) or self._refusal(request) or self._preflight(request, origin)
        await (answer or self._app)(scope, receive, send_strictly)

    def _stop(self, request: Request) -> Response | None:
        """While the server stops it answers what is under way, says how it is, and refuses the rest."""
        if not self._house.is_stopping or request.scope["path"].endswith(_WHILE_STOPPING):
            return None
        headers = {"retry-after": str(requests.RETRY_AFTER_S), "connection": "close"}
        return failure(request, 503, "this server is shutting down", headers)

    def _refusal(self, request: Request) -> Response | None:
        if not self._hosts or request.scope["path"].endswith(_FOR_EVERY_HOST):
            return None
        host = host_name(request.headers.get("host", ""))
        if host in self._hosts or any(one.startswith("*.") and host.endswith(one[1:]) for one in self._hosts):
            return None
        return failure(request, 400, "this host name is not served here: see TOCSIN_ALLOWED_HOSTS", {})

    def _allowed_origin(self, headers: Headers) -> str | None:
        origins = self._house.settings.cors_origins
        origin = headers.get("origin")
        if origin is None or not origins:
            return None
        if "*" in origins:
            return "*"  # harmless: cookies are never allowed along
        return origin if origin in origins else None

    @staticmethod
    def _preflight(request: Request, origin: str | None) -> Response | None:
        if request.method != "OPTIONS" or not origin or "access-control-request-method" not in request.headers:
            return None
        return Response(
            status_code=204,
            headers={
                "access-control-allow-methods": "GET, POST",
                "access-control-allow-headers": "authorization, content-type",
                "access-control-max-age": "600",
            },
        )


def _hosts(settings: Settings) -> frozenset[str]:
    """The names that the server answers to; none for all."""
    named = {host.lower() for host in settings.allowed_hosts}
    if not named or "*" in named:
        return frozenset()
    own = urlsplit(settings.public_url or "").hostname
    return frozenset(named | ({own} if own else set()))


def host_name(host: str) -> str:
    """A ``Host`` header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
