"""Addresses that somebody typed into a setting lead to the open internet, or nowhere."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpcore
import pytest

from tests.standin.smtp import Authority
from tocsin.alerts import outbound
from tocsin.alerts.channels import Refused, Unreachable
from tocsin.alerts.outbound import Closed, Guarded, is_open, place_of

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PUBLIC, OTHER = "93.184.216.34", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


class Peer:
    """A server on loopback that says what it was told to."""

    def __init__(self, answer: bytes, *, ends: bool) -> None:
        self.answer = answer
        self.ends = ends
        self.port = 0
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.names: list[str | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(
                (int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0
            )
            self.bodies.append(await reader.readexactly(length))
            self.heads.append(head)
            writer.write(self.answer)
            await writer.drain()
            if not self.ends:
                await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def header(self, name: str) -> str | None:
        for line in self.heads[-1].split("\r\n"):
            if line.lower().startswith(f"{name.lower()}: "):
                return line.partition(": ")[2]
        return None


@asynccontextmanager
async def peer(answer: bytes = OK, *, context: ssl.SSLContext | None = None, ends: bool = True) -> AsyncIterator[Peer]:
    one = Peer(answer, ends=ends)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0, ssl=context)
    one.port = server.sockets[0].getsockname()[1]
    async with server:
        yield one


class Everywhere(httpcore.AsyncNetworkBackend):
    """Notes to where a connection was wanted, and makes it to one place on loopback."""

    def __init__(self, port: int) -> None:
        self.wanted: list[tuple[str, int]] = []
        self._port = port
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.wanted.append((host, port))
        return await self._inner.connect_tcp("127.0.0.1", self._port, timeout)


def resolver(*answers: Sequence[str]) -> Any:
    """A resolver that answers differently each time; the names that it was asked for."""
    left = list(answers)
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    resolve.asked = asked  # type: ignore[attr-defined]
    return resolve


# Addresses.


def words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


_NOT_OPEN = words("""
    0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.1.2.3
    127.255.255.255 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.170
    192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.9
    224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
    :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8 ::ffff:169.254.169.254 ::127.0.0.1 ::7f00:1
    64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1 2001:0:7f00:1:: 2001:10::1
    2001:db8::1 2002:7f00:1:: 2002:a00:1::1 2002:a9fe:a9fe:: 3fff::1 5f00::1 fc00::1 fd00::1 fd00:ec2::254
    fe80::1 fe80::1%eth0 febf::1 fec0::1 ff02::1 ff0e::1 4000::1 e000::1
    nonsense 127.1 0x7f000001 2130706433 1.2.3 1.2.3.4.5 256.1.1.1
""")
_OPEN = words("""
    1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 169.253.1.1 169.255.1.1
    172.15.255.255 172.32.0.1 192.0.1.1 192.167.1.1 192.169.1.1 198.17.1.1 198.20.1.1 223.255.255.255
    2001:4860:4860::8888 2606:4700:4700::1111 2a00:1450:4001:80b::200e 2003::1
""")
_HERE = words("""
    127.0.0.1 localhost 127.1 0x7f.1 2130706433 017700000001 [::1] [::ffff:127.0.0.1] [::] 0 LOCALHOST.
    １２７.0.0.1 127。0。0。1 ①27.0.0.1
""")
_NO_ADDRESS = words(r"""
    ftp://h.example/ file:///etc/passwd gopher://h.example/ javascript:alert(1) data:,x //h.example/ h.example
    http:// http:///path https://:443/ http://h.example:0/ http://h.example:99999/ http://h.example:x/
    http://[::1/ http://[v1.x]/ http://[fe80::1%25eth0]/ http://[h.example]/ http://a@b@h.example/
    http://h..example/ http://h.example\@127.0.0.1/ http://%31%32%37.0.0.1/ http://h_.exa$mple/
    unix:///tmp/x http+unix://x/ HTTPS HTTP:
""")
_HIDDEN = [
    "",
    "http://h.example /",
    " http://h.example/",
    "http://h.example/\x00",
    "http://h.example\t/",
    "http://h\n.example/",
]


@pytest.mark.parametrize("address", _NOT_OPEN)
def test_addresses_of_networks_within_are_not_open(address: str) -> None:
    """Nor those that hold one in another form."""
    assert not is_open(address)


@pytest.mark.parametrize("address", _OPEN)
def test_addresses_of_the_internet_are_open(address: str) -> None:
    assert is_open(address)


@pytest.mark.parametrize("host", _HERE)
async def test_no_spelling_leads_to_this_machine(host: str) -> None:
    """What the system makes of a name counts, not how it is written."""
    async with peer() as inside:
        with pytest.raises((Refused, Unreachable)):
            await outbound.post(f"http://{host}:{inside.port}/", json={})

    assert inside.heads == []


@pytest.mark.parametrize("url", [*_NO_ADDRESS, *_HIDDEN])
async def test_what_is_no_address_of_the_web_is_not_called(url: str) -> None:
    """And nothing of it is said: it may hold a secret."""
    with pytest.raises(Refused) as caught:
        await outbound.post(url, json={})

    assert "h.example" not in str(caught.value)


def test_an_address_is_taken_apart_once_and_shown_without_its_secrets() -> None:
    """User, password, path and query go to the server, and nowhere else."""
    place = place_of("HTTPS://us%40er:p%2Fw@Hooks.Example.:8443/a b".replace(" ", "%20") + "/token-123?key=s3cret#part")

    assert (place.scheme, place.host, place.port) == ("https", "hooks.example", 8443)
    assert place.target == "/a%20b/token-123?key=s3cret"
    assert place.authorization == "Basic dXNAZXI6cC93"
    assert place.shown == "https://hooks.example:8443"
    assert not any(secret in repr(place) for secret in ("s3cret", "token-123", "p/w", "dXNA"))


# Where a connection goes.


async def test_the_connection_goes_to_the_address_that_was_looked_at() -> None:
    """A name that leads elsewhere the second time gains nothing: there is no second time."""
    async with peer() as server:
        there, resolve = Everywhere(server.port), resolver([PUBLIC], ["127.0.0.1"])
        network = Guarded(allow_private=False, resolve=resolve, inner=there)

        answer = await outbound.post("http://hooks.example/x", json={"a": 1}, network=network)

        assert answer.status == 200 and answer.body == b"ok"
        assert there.wanted == [(PUBLIC, 80)] and resolve.asked == ["hooks.example"]
        assert server.header("Host") == "hooks.example"

        with pytest.raises(Closed, match=r"hooks\.example leads to 127\.0\.0\.1"):
            await outbound.post("http://hooks.example/x", json={"a": 1}, network=network)
        assert len(there.wanted) == 1


@pytest.mark.parametrize("inside", ["10.0.0.7", "::ffff:127.0.0.1", "fe80::1%eth0", "169.254.169.254"])
async def test_one_address_within_is_enough_to_refuse_a_name(inside: str) -> None:
    """Else it would depend on which of them answers."""
    there = Everywhere(1)
    network = Guarded(allow_private=False, resolve=resolver([PUBLIC, OTHER, inside]), inner=there)

    with pytest.raises(Closed):
        await outbound.post("https://hooks.example/", json={}, network=network)
    assert there.wanted == []


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    """As browsers do; many machines have a name in IPv6 and no way there."""

    class OnlyOld(Everywhere):
        async def connect_tcp(self, host: str, port: int, *more: Any, **values: Any) -> httpcore.AsyncNetworkStream:
            if ":" in host:
                self.wanted.append((host, port))
                raise httpcore.ConnectError("no way there")
            return await super().connect_tcp(host, port, *more, **values)

    async with peer() as server:
        there = OnlyOld(server.port)
        network = Guarded(allow_private=False, resolve=resolver([OTHER, PUBLIC]), inner=there)
        await outbound.post("http://hooks.example:8080/", json={}, network=network)

    assert there.wanted == [(OTHER, 8080), (PUBLIC, 8080)]
    assert server.header("Host") == "hooks.example:8080"


async def test_the_certificate_is_checked_for_the_name_not_for_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the connection goes to a number."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    for names, is_right in (("hooks.example", True), ("other.example", False)):
        async with peer(context=authority.context(names)) as server:
            network = Guarded(allow_private=False, resolve=resolver([PUBLIC]), inner=Everywhere(server.port))
            if is_right:
                assert (await outbound.post("https://hooks.example/", json={}, network=network)).status == 200
                assert (
                    await outbound.reach("https://hooks.example/", network=network)
                ).shown == "https://hooks.example"
            else:
                with pytest.raises(Unreachable, match="certificate is not trusted") as caught:
                    await outbound.post("https://hooks.example/", json={}, network=network)
                assert not caught.value.unclear


# What is said and read.


async def test_what_is_sent_is_json_with_the_user_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no proxy of the environment hears of it."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with peer() as server:
        url = f"http://user:pass@127.0.0.1:{server.port}/hook?x=1"
        await outbound.post(url, json={"text": "Ошибка \ud800"}, headers={"X-One": "1"}, allow_private=True)

    assert server.heads[0].startswith("POST /hook?x=1 HTTP/1.1\r\n")
    assert server.header("Authorization") == "Basic dXNlcjpwYXNz"
    assert server.header("X-One") == "1" and server.header("Content-Type") == "application/json"
    assert json.loads(server.bodies[0])["text"].startswith("Ошибка ")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_not_followed(status: int) -> None:
    async with peer() as elsewhere:
        to = f"http://127.0.0.1:{elsewhere.port}/"
        async with peer(f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()) as server:
            answer = await outbound.post(f"http://127.0.0.1:{server.port}/", json={}, allow_private=True)

    assert answer.status == status and elsewhere.heads == []


async def test_no_more_is_read_than_can_matter() -> None:
    """However much comes, and packed or not."""
    endless = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nSet-Cookie: a=1\r\n\r\n" + b"x" * 1_000_000
    async with peer(endless, ends=False) as server:
        answer = await outbound.post(f"http://127.0.0.1:{server.port}/", json={}, allow_private=True)

    assert answer.body == b"x" * outbound.BODY_LIMIT and answer.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (b"", False),
        (b"HTTP/1.1 200 OK\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", False),
        (b"", True),
        (b"220 mail.example ESMTP\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", True),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000, True),
    ],
)
async def test_an_answer_that_is_none_is_unclear_and_over_in_time(answer: bytes, ends: bool) -> None:
    """The request was on its way: it may have been taken."""
    async with peer(answer, ends=ends) as server:
        url = f"http://user:s3cret-pass@127.0.0.1:{server.port}/token-123"
        with pytest.raises(Unreachable) as caught:
            await outbound.post(url, json={}, allow_private=True, timeout_s=1.0)

    assert caught.value.unclear
    assert "s3cret" not in str(caught.value) and "token" not in str(caught.value)


@pytest.mark.parametrize("call", [outbound.post, outbound.reach])
async def test_nobody_there_means_nothing_was_said(call: Any) -> None:
    """No name, no listener: clear, and in words."""
    async with peer() as gone:
        port = gone.port
    values: dict[str, Any] = {} if call is outbound.reach else {"json": {}}
    problems: list[Unreachable] = []
    for url in (f"http://127.0.0.1:{port}/", "http://nobody.invalid/"):
        with pytest.raises(Unreachable) as caught:
            await call(url, allow_private=True, timeout_s=5, **values)
        problems.append(caught.value)

    assert "Connect call failed" in str(problems[0]) and not problems[0].unclear
