"""
Who makes a call, and whether they may.

Programs send ``Authorization: Bearer <token>``; people log in on the page, with a token or with the
one-time code of a log-in address, and have a session in a cookie. A secret is never taken from an
address, except the code, which only a button's POST redeems: scanners of links open addresses.
Programs of this machine may send errors without a token, as long as nobody has made one for that.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urlsplit

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tocsin import clock
from tocsin.api.calls import Call, Caller, House, Right, form_token
from tocsin.api.guard import host_name
from tocsin.api.inputs import Inputs, fields_of
from tocsin.api.views import page, root_of
from tocsin.contained import contained
from tocsin.settings import Settings
from tocsin.store import Store, audit, credentials
from tocsin.text import clean

LOGIN = "/admin/debug/login"
LOGOUT = "/admin/debug/logout"
PAGE = "/admin/debug"

_WINDOW_S = 60.0
_SAME_GUESSES = 60  #   a program with an old token asks now and then …
_OTHER_GUESSES = 20  #  … but does not try others
_ALL_GUESSES = 200
_ADDRESSES = 10_000

_FORWARDED = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip")
"""Headers of proxies, beside all that begin with ``x-forwarded-``: what has one is not from this machine."""


@dataclass(slots=True)
class _Guesses:
    begun: float
    total: int = 0
    different: set[str] = field(default_factory=set)


class Throttle:
    """
    Wrong guesses, per address and in all; after too many, further ones wait for the rest of the minute.

    What is right never waits, so nobody can lock the team out, from elsewhere or through the same proxy.
    Guessing a token is hopeless by its length; this keeps the database and the audit out of it.
    """

    def __init__(self) -> None:
        self._by_address: OrderedDict[str, _Guesses] = OrderedDict()
        self._all = _Guesses(begun=0.0)

    def wait_s(self, address: str) -> int:
        """How long an address must wait before its next try; 0: not at all."""
        moment = time.monotonic()
        guesses = self._by_address.get(address)
        if guesses is None or moment - guesses.begun >= _WINDOW_S:
            return 0
        too_many = guesses.total >= _SAME_GUESSES or len(guesses.different) >= _OTHER_GUESSES
        too_many_in_all = moment - self._all.begun < _WINDOW_S and self._all.total >= _ALL_GUESSES
        return int(guesses.begun + _WINDOW_S - moment) + 1 if too_many or too_many_in_all else 0

    def note(self, address: str, guess: str) -> bool:
        """Count a wrong guess; whether it was the address's first within a minute."""
        moment = time.monotonic()
        if moment - self._all.begun >= _WINDOW_S:
            self._all = _Guesses(begun=moment)
        self._all.total += 1
        guesses = self._by_address.get(address)
        is_first = guesses is None or moment - guesses.begun >= _WINDOW_S
        if guesses is None or is_first:
            guesses = self._by_address[address] = _Guesses(begun=moment)
            self._by_address.move_to_end(address)
        guesses.total += 1
        if len(guesses.different) < _OTHER_GUESSES:
            guesses.different.add(credentials.digest(guess))
        while len(self._by_address) > _ADDRESSES:
            self._by_address.popitem(last=False)
        return is_first


async def authorize(request: Request, house: House, call: Call) -> Caller | None:
    """
    The caller of a call, who has the right that it needs.

    Raises:
        HTTPException: 401 nobody known, 403 known but without the right, 429 too many wrong guesses.
    """
    if call.right is Right.NONE:
        return None
    caller = await (_sender(request, house) if call.right is Right.INGEST else _known(request, house))
    if caller is None:
        raise HTTPException(401, _how_to_be_known(house, call), {"www-authenticate": "Bearer"})
    if not caller.may(call.right):
        raise HTTPException(403, f"this token may not do that: its right is {caller.right}")
    if caller.session is not None and call.method != "GET":
        await _require_own_form(request, house, caller.session)
    return caller


def _how_to_be_known(house: House, call: Call) -> str:
    if call.right is Right.INGEST:
        where = "" if house.settings.ingest_token else ", unless you send from the server's own machine, to 127.0.0.1"
        return f"send `Authorization: Bearer <token>`{where}; TOCSIN_INGEST_TOKEN sets a token for this"
    hint = "" if house.expects_alerts or house.settings.token else "; set TOCSIN_TOKEN to have one"
    return f"log in, or send `Authorization: Bearer <token>`{hint}"


async def _sender(request: Request, house: House) -> Caller | None:
    """Who sends errors: a program, never a session."""
    if "authorization" in request.headers:
        return await _by_header(request, house)
    if house.settings.ingest_token or not _is_of_this_machine(request):
        return None
    _require_same_origin(request, house)  # a browser here may show the page of anyone
    return Caller(right=Right.INGEST, name="this machine", via="api")


def _is_of_this_machine(request: Request) -> bool:
    """
    Whether a program on this machine asks, and nobody through it.

    The name that it asks for must be a loopback one too: that of a stranger's page may have been made to
    lead here (DNS rebinding). HTTP/1.0 is what a proxy speaks that was set up without its headers.
    """
    host = host_name(request.headers.get("host", ""))
    return (
        request.client is not None
        and _is_loopback(request.client.host)
        and (host == "localhost" or host.endswith(".localhost") or _is_loopback(host))
        and request.scope["http_version"] != "1.0"
        and not any(name.startswith("x-forwarded-") or name in _FORWARDED for name in request.headers)
    )


@lru_cache(maxsize=256)
def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


async def _by_header(request: Request, house: House) -> Caller:
    scheme, _, secret = request.headers["authorization"].partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise HTTPException(401, "send `Authorization: Bearer <token>`", {"www-authenticate": "Bearer"})
    return await _by_token(request, house, secret.strip(), via="api")


async def _known(request: Request, house: House) -> Caller | None:
    if "authorization" in request.headers:
        return await _by_header(request, house)
    secret = request.cookies.get(_cookie_name(request, house), "")
    if not secret:
        return None
    found = await house.store.read(credentials.session, secret, clock.now())
    if found is None:
        return None
    # A page that refreshes itself does not keep a session alive that nobody uses.
    if found.is_stale and "x-tocsin-refresh" not in request.headers:
        with contained("noting the use of a session"):
            await house.store.write(credentials.touch_session, secret, clock.now())
    return Caller(right=Right(found.rights), name=found.label, via="page", session=secret)


async def _by_token(request: Request, house: House, secret: str, *, via: str) -> Caller:
    # Behind a proxy a whole team may have one address: only what is wrong waits.
    if right := _configured(house.settings, secret):
        return Caller(right=right, name=f"token: {right}", via=via)
    found = await house.store.read(credentials.token, secret)
    if found is not None:
        return Caller(right=Right(found.rights), name=found.label, via=via)
    if wait_s := _throttle(request).wait_s(_address(request)):
        raise HTTPException(429, "too many wrong tokens; wait a minute", {"retry-after": str(wait_s)})
    await _note_refusal(request, house, secret, via)
    raise HTTPException(401, "this token is not known", {"www-authenticate": "Bearer"})


def _configured(settings: Settings, secret: str) -> Right | None:
    """The right of a token from the settings; every one is compared, in the same time whatever is sent."""
    found: Right | None = None
    sent = credentials.digest(secret)
    for right, token in (
        (Right.INGEST, settings.ingest_token),
        (Right.READ, settings.read_token),
        (Right.FULL, settings.token),
    ):
        if hmac.compare_digest(sent, credentials.digest(token or "")) and token:
            found = right
    return found


async def _note_refusal(request: Request, house: House, secret: str, via: str) -> None:
    address = _address(request)
    # Not `request.url`, which is made from the Host header, so from what a stranger says.
    path = clean(str(request.scope["path"]), 150)
    if _throttle(request).note(address, secret):
        with contained("the audit of a refused log-in"):
            await house.store.write(
                audit.record,
                actor=f"unknown ({address})",
                via=via,
                action="refused",
                detail=f"wrong credentials for {path}"[:200],
                allowed=False,
                now=clock.now(),
            )


def _throttle(request: Request) -> Throttle:
    throttle = request.app.state.throttle
    assert isinstance(throttle, Throttle)
    return throttle


def _address(request: Request) -> str:
    """The peer's address; of IPv6 the network, in which one sender has them all."""
    host = request.client.host if request.client else "unknown"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network(f"{address}/64", strict=False)) if address.version == 6 else host


# Sessions


def _is_https(request: Request, house: House) -> bool:
    public_url = house.settings.public_url or ""
    if request.scope["scheme"] == "https":
        return True
    # Behind a proxy that is not trusted with its headers; the page may also be opened beside it, without TLS.
    return public_url.startswith("https://") and _host(request) == urlsplit(public_url).netloc.lower()


def _host(request: Request) -> str:
    return request.headers.get("host", "").lower()


def _cookie_name(request: Request, house: House) -> str:
    return "__Host-tocsin_session" if _is_https(request, house) else "tocsin_session"


def _require_same_origin(request: Request, house: House) -> None:
    """
    Refuse what the browser says comes from another site.

    Source: Fetch Metadata; where it is missing (older browsers, no TLS), the ``Origin`` header.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        is_own = site == "same-origin"
    elif origin is not None:
        hosts = {_host(request), urlsplit(house.settings.public_url or "").netloc.lower()} - {""}
        is_own = urlsplit(origin).netloc.lower() in hosts
    else:
        is_own = True  # no browser
    if not is_own:
        raise HTTPException(403, "this came from another site")


async def _require_own_form(request: Request, house: House, session: str) -> None:
    _require_same_origin(request, house)
    sent = request.headers.get("x-tocsin-form")
    if sent is None:
        request.state.fields = fields = await fields_of(request)
        sent = fields.text("form_token") or ""
    if not hmac.compare_digest(sent.encode(), form_token(session).encode()):
        raise HTTPException(403, "this form is not from your session; load the page again")


async def fields_sent(request: Request) -> Inputs:
    """The fields of the body, also when they were read before to find a form's token."""
    fields = getattr(request.state, "fields", None)
    return fields if isinstance(fields, Inputs) else await fields_of(request)


async def show_login(request: Request, house: House) -> Response:
    """The log-in form, or, with a code in the address, the button that redeems it."""
    code = Inputs(request.query_params).text("code", 200)
    return page(request, "login.html", code=code, next=None)


async def log_in(request: Request, house: House) -> Response:
    """Make a session for a code or a token; any session before it ends."""
    _require_same_origin(request, house)
    fields = await fields_of(request)
    code, token = fields.text("code", 200), fields.text("token", 1000)
    try:
        if code:
            caller = await _by_code(request, house, code)
        elif token:
            caller = await _by_token(request, house, token.strip(), via="page")
        else:
            raise HTTPException(400, "enter a token")
        if not caller.may(Right.READ):
            raise HTTPException(403, "this token may only send errors")
    except HTTPException as problem:
        return page(
            request,
            "login.html",
            status=problem.status_code,
            headers=dict(problem.headers or {}),
            code=None,
            next=fields.text("next"),
            problem=problem.detail,
        )

    cookie = _cookie_name(request, house)
    old = request.cookies.get(cookie)
    session = await house.store.write(_begin_session, caller, old, _address(request))
    answer = RedirectResponse(root_of(request) + _safe_next(fields.text("next")), 303)
    answer.set_cookie(
        cookie,
        session,
        max_age=int(credentials.SESSION_LASTS.total_seconds()),
        path="/",
        httponly=True,
        samesite="lax",
        secure=_is_https(request, house),
    )
    return answer


async def _by_code(request: Request, house: House, code: str) -> Caller:
    if wait_s := _throttle(request).wait_s(_address(request)):
        raise HTTPException(429, "too many wrong codes; wait a minute", {"retry-after": str(wait_s)})
    found = await house.store.write(credentials.redeem_code, code, clock.now())
    if found is None:
        await _note_refusal(request, house, code, "page")
        raise HTTPException(401, "this code was used before or is too old; `tocsin serve` prints a new one")
    return Caller(right=Right(found.rights), name=found.label, via="page")


async def log_out(request: Request, house: House) -> Response:
    """End the session, for every server at once."""
    cookie = _cookie_name(request, house)
    answer = RedirectResponse(root_of(request) + LOGIN, 303)
    if session := request.cookies.get(cookie):
        await _require_own_form(request, house, session)
        await house.store.write(credentials.end_session, session)
    answer.delete_cookie(cookie, path="/", httponly=True, samesite="lax", secure=_is_https(request, house))
    return answer


def _begin_session(connection: Connection, caller: Caller, old: str | None, address: str) -> str:
    now = clock.now()
    if old:
        credentials.end_session(connection, old)
    audit.record(
        connection,
        actor=caller.name,
        via="page",
        action="log-in",
        detail=f"from {address}",
        now=now,
    )
    return credentials.make_session(connection, rights=caller.right, label=caller.name, now=now)


def _safe_next(target: str | None) -> str:
    """Where to go after the log-in: a page of ours, never another site."""
    if target and target.startswith(PAGE) and target[len(PAGE) :][:1] in ("", "/", "?") and "\\" not in target:
        return target
    return PAGE


async def login_address(store: Store, settings: Settings, base_url: str) -> str:
    """
    An address that logs its first user in, within ten minutes, with full access.

    Args:
        base_url: where the server is reached: ``http://127.0.0.1:4318``; empty for the public address.
    """
    code = await store.write(credentials.make_code, rights=Right.FULL, label="admin", now=clock.now())
    return f"{(base_url or settings.public_url or '').rstrip('/')}{LOGIN}?code={code}"


async def first_token(store: Store, settings: Settings) -> str | None:
    """Make a token with full access where none is configured nor was made before; None otherwise."""
    if settings.token:
        return None
    return await store.write(_first_token)


def _first_token(connection: Connection) -> str | None:
    if credentials.has_token(connection, Right.FULL):
        return None
    return credentials.make_token(connection, rights=Right.FULL, label="token: full", now=clock.now())


CALLS = (
    Call(method="GET", path=LOGIN, right=Right.NONE, run=show_login, about="The log-in form.", is_page=True),
    Call(method="POST", path=LOGIN, right=Right.NONE, run=log_in, about="Log in by code or token.", is_page=True),
    Call(method="POST", path=LOGOUT, right=Right.NONE, run=log_out, about="Log out.", is_page=True),
)
