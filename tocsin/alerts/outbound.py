"""
The one client for addresses that somebody has typed into a setting: webhook, heartbeat.

Such an address may lead, by mistake or on purpose, to what only this machine can reach: a cloud's
metadata service, a database, another container. So a name is resolved once, every address that it has
must be one of the open internet, and the connection goes to the address that was looked at; a second
look by somebody else could give another answer. Nothing is followed, nothing is kept, all has a limit.

Source: OWASP ASVS 5.0, 1.3.6 and 15.3.2; IANA special-purpose address registries (IPv4, IPv6).
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpcore

from tocsin import __version__
from tocsin.alerts.channels import Refused, Unreachable
from tocsin.text import clean, one_line

TIME_LIMIT_S = 10.0
"""For everything: name, connection, TLS, request and answer."""

BODY_LIMIT = 64 * 1024
"""Bytes read of an answer."""

_ADDRESSES_TRIED = 4
_PORTS = {"http": 80, "https": 443}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Closed(Refused):
    """The address leads to where only this machine, or its network, can go."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes: an address taken apart once, so that no second parser can read it otherwise."""

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)
    authorization: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address as texts may show it: path, query and user can be secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; names of headers are small, the body ends at `BODY_LIMIT`."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def place_of(url: str) -> Place:
    """
    Take an address apart.

    Raises:
        Refused: it is none that may be called; the text says why, and shows none of it.
    """
    if any(char <= " " or char in "\x7f\\" for char in url):
        raise Refused("an address with a space, a control character or a backslash in it is not called")
    try:
        parts = urlsplit(url)
        scheme, port = parts.scheme.lower(), parts.port
        host = _host(parts.hostname or "", is_number="[" in parts.netloc)
    except ValueError:  # not what Python says: it would show a part of the address
        raise Refused("the address cannot be read; a / or @ in a password is written %2F or %40") from None
    if scheme not in _PORTS:
        raise Refused("only addresses that begin with http:// or https:// are called")
    if not host or port == 0 or parts.netloc.count("@") > 1:
        raise Refused("the address has no host that could be called")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    target = quote(parts.path or "/", safe="%/:=&~+!$,;'@()*") + (
        "?" + quote(parts.query, safe="%/:=&~+!$,;'@()*?") if parts.query else ""
    )
    return Place(scheme, host, port or _PORTS[scheme], target, authorization)


def _host(name: str, *, is_number: bool) -> str:
    """A host as names are resolved and certificates are checked; raises ValueError."""
    if is_number:
        if "%" in name:  # a way out of this machine, which only this machine knows
            raise ValueError("no host")
        return str(ipaddress.IPv6Address(name))
    host = name.encode("idna").decode().rstrip(".")
    if host and not re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?", host):
        raise ValueError("no host")
    return host


_CLOSED_V4 = [
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",  #        this network
        "10.0.0.0/8",
        "100.64.0.0/10",  #    carriers' NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  #   link-local: where clouds keep what belongs to a machine
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  #   relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  #      multicast
        "240.0.0.0/4",  #      reserved, and broadcast
    )
]
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")  # all that is given out; forms that hold an IPv4 address lie outside …
_CLOSED_V6 = [
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  #       protocols, Teredo among them
        "2001:db8::/32",
        "2002::/16",  #       … but for 6to4
        "3fff::/20",
    )
]


def is_open(address: str) -> bool:
    """Whether an IP address is one of the open internet; written out, since Python's own list changes."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in block for block in _CLOSED_V4)
    return ip.scope_id is None and ip in _OPEN_V6 and not any(ip in block for block in _CLOSED_V6)


async def resolve(host: str, port: int) -> Sequence[str]:
    """Every IP address of a host, in the system's order."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Guarded(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were looked at, and to no other."""

    def __init__(
        self, *, allow_private: bool, resolve: Resolve = resolve, inner: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError) as problem:
            raise httpcore.ConnectError(f"its name cannot be resolved: {_cause(problem)}") from None
        if not self._allow_private and (closed := next((one for one in found if not is_open(one)), None)):
            leads = closed if closed == host else f"{host} leads to {closed}, which"
            raise Closed(f"{leads} is no address of the open internet")
        failed: Exception = httpcore.ConnectError("its name has no address")
        tried = found[:_ADDRESSES_TRIED]
        for address in tried:
            try:
                return await self._inner.connect_tcp(
                    address, port, (timeout or TIME_LIMIT_S) / len(tried), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as problem:
                failed = problem
        raise failed

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise Refused("a file is not called")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


async def post(
    url: str,
    *,
    json: Any,
    allow_private: bool = False,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIME_LIMIT_S,
    network: httpcore.AsyncNetworkBackend | None = None,
) -> Answer:
    """
    POST something as JSON, and read the answer, whatever its status.

    A user and a password in the address go as basic authentication. No redirect is followed, no proxy of
    the environment is asked, no cookie is kept.

    Args:
        allow_private: whether it may go to addresses that are not of the open internet.
        timeout_s: for everything.
        network: connects, instead of `Guarded`.

    Raises:
        Refused: the address may not be called; `Closed` when only `allow_private` would let it.
        Unreachable: no answer, or none that is HTTP; `unclear` when the request was on its way.
    """
    place = place_of(url)
    sent = False

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal sent
        sent = sent or event.endswith("send_request_headers.started")

    every = {"User-Agent": f"tocsin/{__version__}", "Content-Type": "application/json", "Accept-Encoding": "identity"}
    every |= headers or {}
    if place.authorization:
        every["Authorization"] = place.authorization
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpcore.AsyncConnectionPool(
                ssl_context=await _trust() if place.scheme == "https" else None,
                network_backend=network or Guarded(allow_private=allow_private),
                max_keepalive_connections=0,
            ) as pool,
            pool.stream(
                "POST",
                httpcore.URL(scheme=place.scheme, host=place.host, port=_explicit(place), target=place.target),
                headers=[(name, value) for name, value in every.items()],
                content=dumps(json, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"),
                extensions={"trace": trace, "timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)},
            ) as answer,
        ):
            body = b""
            async for chunk in answer.aiter_stream():
                body += chunk[: BODY_LIMIT - len(body)]
                if len(body) >= BODY_LIMIT:
                    break
            named = {name.decode("ascii", "replace").lower(): value.decode("latin-1") for name, value in answer.headers}
            return Answer(answer.status, named, body)
    except (TimeoutError, httpcore.TimeoutException):
        raise Unreachable(f"{place.shown}: no answer within {timeout_s:g} s", unclear=sent) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as problem:
        raise Unreachable(f"{place.shown}: {_cause(problem)}", unclear=sent) from None


async def reach(
    url: str,
    *,
    allow_private: bool = False,
    timeout_s: float = TIME_LIMIT_S,
    network: httpcore.AsyncNetworkBackend | None = None,
) -> Place:
    """Connect, with TLS where the address says so, and say nothing; raises as `post` does."""
    place = place_of(url)
    try:
        async with asyncio.timeout(timeout_s):
            backend = network or Guarded(allow_private=allow_private)
            stream = await backend.connect_tcp(place.host, place.port, timeout_s)
            try:
                if place.scheme == "https":
                    stream = await stream.start_tls(await _trust(), place.host, timeout_s)
            finally:
                await stream.aclose()
    except (TimeoutError, httpcore.TimeoutException):
        raise Unreachable(f"{place.shown}: no answer within {timeout_s:g} s") from None
    except (httpcore.NetworkError, OSError) as problem:
        raise Unreachable(f"{place.shown}: {_cause(problem)}") from None
    return place


async def _trust() -> ssl.SSLContext:
    """The system's trust; read in a thread, since it takes a while."""
    return await asyncio.to_thread(ssl.create_default_context)


def _explicit(place: Place) -> int | None:
    """The port as the Host header shows it: the usual one is left out."""
    return None if place.port == _PORTS[place.scheme] else place.port


def _cause(problem: BaseException) -> str:
    """What really went wrong, below what the libraries made of it; on one line."""
    while (deeper := problem.__cause__ or problem.__context__) is not None:
        problem = deeper
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {problem.verify_message}"
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return one_line(clean(text or type(problem).__name__, 200))
