"""Outgoing HTTP calls as breadcrumbs: one for each, whichever library makes it, and nothing changed for the caller."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import re
import socket
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3
import urllib3.connectionpool

import tocsin
from tests.instrumentation.conftest import Watched
from tests.instrumentation.test_crumbs import crumbs_of

SECRET = "XXXXabXX12XXXXcdXXXXXX34"  # in a path, as webhooks have it


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(404 if self.path.startswith("/missing") else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """A server that answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def by_http_client(url: str) -> tuple[int, bytes]:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host)
    try:
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def by_urllib(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read()


def by_urllib3(url: str) -> tuple[int, bytes]:
    with urllib3.PoolManager() as pool:
        response = pool.request("GET", url, retries=2)
        return response.status, response.data


def by_requests(url: str) -> tuple[int, bytes]:
    response = requests.get(url, timeout=10)
    return response.status_code, response.content


def by_httpx(url: str) -> tuple[int, bytes]:
    response = httpx.get(url)
    return response.status_code, response.content


async def by_httpx_async(url: str) -> tuple[int, bytes]:
    async with httpx.AsyncClient() as client:
        response = await client.get(url)
        return response.status_code, response.content


async def by_aiohttp(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.read()


Way = Callable[[str], Any]
WAYS = [by_http_client, by_urllib, by_urllib3, by_requests, by_httpx, by_httpx_async, by_aiohttp]


def go(way: Way, url: str, then: Callable[[], object] = lambda: None) -> Any:
    """Call, then do something in the same unit of work."""
    if not inspect.iscoroutinefunction(way):
        try:
            return way(url)
        finally:
            then()

    async def both() -> Any:
        try:
            return await way(url)
        finally:
            then()

    return asyncio.run(both())


def fail() -> None:
    tocsin.track_error("it broke")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("path", "status"), [("/orders/42", 200), ("/missing", 404)])
def test_a_call_leaves_one_crumb(way: Way, path: str, status: int, host: str, watched: Watched) -> None:
    answer = go(way, f"http://{host}{path}?token=geheim77#part", fail)

    assert answer == (status, b"ok")
    (crumb,) = crumbs_of(watched.row())
    assert 0 < crumb.pop("ms") < 60_000
    del crumb["time"]
    assert crumb == {"kind": "http", "method": "GET", "host": host, "path": path, "status": status}


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_fails_raises_what_it_raises(way: Way, unused: str, watched: Watched) -> None:
    with pytest.raises(Exception) as seen:
        go(way, f"http://{unused}/", fail)
    tocsin.shutdown()
    with pytest.raises(Exception) as bare:
        go(way, f"http://{unused}/")

    assert type(seen.value) is type(bare.value)
    assert said_by(seen.value) == said_by(bare.value)
    watched.init()
    (crumb,) = (one for one in crumbs_of(watched.row()) if one["kind"] == "http")  # urllib3 logs that it tries again
    assert (crumb["kind"], crumb["host"], crumb["path"]) == ("http", unused, "/")
    assert crumb["exception"].endswith("Error")
    assert "status" not in crumb


def said_by(exc: BaseException) -> str:
    return re.sub("0x[0-9a-f]+", "0x", "".join(traceback.format_exception_only(exc)))


@pytest.fixture
def unused() -> str:
    """An address where nobody answers."""
    return "127.0.0.1:1"


@pytest.mark.parametrize("way", [by_http_client, by_requests, by_httpx, by_aiohttp])
def test_a_key_in_a_path_is_masked(way: Way, host: str, watched: Watched) -> None:
    """As in the address of a webhook; ids and words are left."""
    kept = "/hooks/3f2504e0-4f89-11d3-9a0c-0305e82c3301/how-to-make-2-cups-of-tea/42"

    go(way, f"http://{host}{kept}/{SECRET}", fail)

    (crumb,) = crumbs_of(watched.row())
    assert crumb["path"] == f"{kept}/[scrubbed]"


def test_a_password_in_an_address_is_in_no_crumb(host: str, watched: Watched) -> None:
    go(by_httpx, f"http://shop:geheim77@{host}/", fail)
    go(by_requests, f"http://shop:geheim77@{host}/", fail)

    assert "geheim77" not in str([crumbs_of(row) for row in watched.rows()])


@pytest.mark.parametrize(
    "call",
    [
        lambda: http.client.HTTPConnection("127.0.0.1").putrequest(),  # type: ignore[call-arg]
        lambda: urllib3.HTTPConnectionPool("127.0.0.1").urlopen(),  # type: ignore[call-arg]
        lambda: httpx.HTTPTransport().handle_request(),  # type: ignore[call-arg]
        lambda: asyncio.run(_aiohttp_without_address()),
    ],
    ids=["http.client", "urllib3", "httpx", "aiohttp"],
)
def test_wrong_arguments_are_the_library_s_to_refuse(call: Callable[[], object], watched: Watched) -> None:
    with pytest.raises(TypeError):
        call()


async def _aiohttp_without_address() -> None:
    async with aiohttp.ClientSession() as session:
        await session.get(None)  # type: ignore[arg-type]


def test_a_cancelled_call_says_so(watched: Watched) -> None:
    async def get(url: str) -> None:
        async with httpx.AsyncClient() as client:
            try:
                await client.get(url)
            finally:
                fail()

    async def main(url: str) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(get(url), 0.05)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(main(f"http://127.0.0.1:{silent.getsockname()[1]}/"))

    (crumb,) = crumbs_of(watched.row())
    assert crumb["exception"] == "CancelledError"


HOOKED: list[tuple[Any, str]] = [
    (http.client.HTTPConnection, "putrequest"),
    (http.client.HTTPConnection, "endheaders"),
    (http.client.HTTPConnection, "getresponse"),
    (urllib3.connectionpool.HTTPConnectionPool, "urlopen"),
    (httpx.HTTPTransport, "handle_request"),
    (httpx.AsyncHTTPTransport, "handle_async_request"),
    (aiohttp.ClientSession, "_request"),
]


def test_signatures_stay_and_everything_is_put_back(unwatched: Watched) -> None:
    before = [getattr(owner, name) for owner, name in HOOKED]
    shapes = [(inspect.signature(one), inspect.iscoroutinefunction(one)) for one in before]

    unwatched.init()
    unwatched.init(service="other")
    during = [getattr(owner, name) for owner, name in HOOKED]
    tocsin.shutdown()

    assert all(one is not other for one, other in zip(before, during, strict=True))
    assert [(inspect.signature(one), inspect.iscoroutinefunction(one)) for one in during] == shapes
    assert [getattr(owner, name) for owner, name in HOOKED] == before
