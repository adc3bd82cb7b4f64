"""Nothing that anybody sends to the door breaks it, holds it up, or fills the memory."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.hostile import Input, inputs, many_texts, wide_text
from tests.test_serve import TOKEN, Server, serving
from tests.waiting import eventually

MIB = 2**20
MOST_MEMORY = 32 * MIB
LARGE = 8 * MIB - 1024
_AT_ONCE = 8
_ANSWER_WITHIN_S = 2.0
_BUSY_S = 15.0
"""The most on a machine that other tests keep busy: what hangs takes longer."""
_PLENTY_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server at work, which has read and stored one error of each kind."""
    with serving(tmp_path, is_fresh=True, TOCSIN_TOKEN=TOKEN, TOCSIN_ALERT_ENVIRONMENTS="none") as one:
        one.until_ready()
        asyncio.run(send_all(one, inputs(0, 50)))
        assert one.post("before").status_code == 200
        eventually(lambda: "before" in one.errors())
        yield one


class Watch:
    """The most memory that a server takes, looked at all the time, beyond what it had at first."""

    def __init__(self, server: Server) -> None:
        self._process = psutil.Process(server.process.pid)
        self._at_first = self._process.memory_info().rss
        self.grown = 0

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *args: object) -> None:
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            self.grown = max(self.grown, self._process.memory_info().rss - self._at_first)
            await asyncio.sleep(0.01)


def port_of(server: Server) -> int:
    return int(server.address.rsplit(":", 1)[1])


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    try:
        yield reader, writer
    finally:
        writer.close()


def as_request(one: Input) -> bytes:
    path, headers, body = one
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + body


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the connection ends with it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    return int(head.split(b" ")[1]), b"connection: close" in head


async def send_all(server: Server, found: Iterable[Input], at_once: int = _AT_ONCE) -> tuple[Counter[int], float]:
    """Send everything over a few connections; how often which status came, and the longest that one took."""
    statuses: Counter[int] = Counter()
    longest = 0.0
    waiting = iter(found)

    async def work() -> None:
        nonlocal longest
        one = next(waiting, None)
        while one is not None:
            async with connected(server) as (reader, writer):
                is_last = False
                while one is not None and not is_last:
                    begun = time.monotonic()
                    writer.write(as_request(one))
                    status, is_last = await asyncio.wait_for(answer_of(reader), _PLENTY_S)
                    longest = max(longest, time.monotonic() - begun)
                    statuses[status] += 1
                    one = next(waiting, None)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return statuses, longest


def is_well(server: Server) -> None:
    """It still takes errors, and stores them."""
    assert server.post("after").status_code == 200
    eventually(lambda: "after" in server.errors(), 30)
    assert "Traceback" not in server.said


@pytest.mark.parametrize(
    ("count", "within_s"), [(5_000, _BUSY_S), pytest.param(100_000, _ANSWER_WITHIN_S, marks=pytest.mark.gate)]
)
async def test_hostile_bodies_are_answered(server: Server, count: int, within_s: float) -> None:
    """
    Malformed, deep, huge, packed, random, and good ones among them: none is a failure of ours.

    In the long form what a server keeps ready (stacks, requests, pages) is full before it is looked at: all of
    that has a limit, and is no growth.
    """
    if count > 5_000:
        await send_all(server, inputs(2, 5_000))
    async with Watch(server) as watch:
        statuses, longest = await send_all(server, inputs(1, count))

    assert sum(statuses.values()) == count
    assert set(statuses) <= {200, 400, 413, 415}
    assert min(statuses[200], statuses[400], statuses[413], statuses[415]) > 0
    assert longest < within_s
    assert watch.grown <= MOST_MEMORY
    await asyncio.to_thread(is_well, server)


async def test_the_largest_bodies_take_no_more_memory_than_small_ones(server: Server) -> None:
    """Each of 8 MiB, one after the other: one text or many, with characters that take four bytes each or without."""
    protobuf = {"content-type": "application/x-protobuf"}
    bodies = [wide_text(LARGE), many_texts(LARGE), b"\x7a" + wide_text(LARGE)[1:]]
    async with Watch(server) as watch:
        statuses, _ = await send_all(server, [("/v1/logs", protobuf, body) for body in bodies * 3], at_once=1)

    assert statuses == {200: 9}
    assert watch.grown <= MOST_MEMORY
    await asyncio.to_thread(is_well, server)


@pytest.mark.gate
async def test_many_bombs_at_once_take_the_memory_of_one(server: Server) -> None:
    """Fifty that would be 12 GiB, while others send as ever."""
    bomb = gzip.compress(bytes(256 * MIB), 9)
    headers = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}

    async def throw() -> int:
        async with connected(server) as (reader, writer):
            writer.write(as_request(("/v1/logs", headers, bomb)))
            return (await asyncio.wait_for(answer_of(reader), _PLENTY_S))[0]

    async with Watch(server) as watch:
        thrown = asyncio.gather(*(throw() for _ in range(50)))
        others, longest = await send_all(server, [("/v1/logs", {"content-type": "application/json"}, b"{}")] * 100)
        refused = await thrown

    assert set(refused) <= {413, 503}
    assert set(others) <= {200, 503}
    assert longest < 2 * _ANSWER_WITHIN_S
    assert watch.grown <= MOST_MEMORY
    await asyncio.to_thread(is_well, server)


@pytest.mark.gate
async def test_large_bodies_at_once_are_not_all_held(server: Server) -> None:
    """What has no room is told so at once; its sender comes again."""
    body = b"\x7a" + wide_text(LARGE)[1:]  # a field that nobody knows
    one = as_request(("/v1/logs", {"content-type": "application/x-protobuf"}, body))

    async def send() -> int:
        async with connected(server) as (reader, writer):
            writer.write(one)
            return (await asyncio.wait_for(answer_of(reader), _PLENTY_S))[0]

    async with Watch(server) as watch:
        statuses = Counter(await asyncio.gather(*(send() for _ in range(20))))

    assert set(statuses) == {200, 503}
    assert watch.grown <= MOST_MEMORY
    await asyncio.to_thread(is_well, server)


HEAD = b"POST /v1/logs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.gate
async def test_slow_senders_are_let_go_and_stop_nobody(server: Server) -> None:
    """Silent ones, those with a byte now and then, in the head and in the body, and one that has its answer."""

    async def dawdle(begin: bytes, bit: bytes, status: int) -> float:
        begun = time.monotonic()
        async with connected(server) as (reader, writer):
            writer.write(begin)
            ended = asyncio.create_task(reader.read())
            while not ended.done():
                writer.write(bit)
                await asyncio.wait({ended}, timeout=0.5)
            with suppress(ConnectionError):
                assert ended.result().startswith(b"HTTP/1.1 %d " % status if status else b"")
        return time.monotonic() - begun

    kinds = (
        (b"", b"", 0),
        (HEAD, b"x", 0),
        (HEAD + b"Content-Length: 100000\r\n\r\n", b"", 408),
        (HEAD + b"Content-Length: 100000\r\n\r\n", b"x", 408),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 408),
        (HEAD + b"X-Real-IP: 7.7.7.7\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 401),
    )
    slow = asyncio.gather(*(dawdle(*kind) for kind in kinds for _ in range(50)))
    good = ("/v1/logs", {"content-type": "application/json"}, b"{}")
    statuses, longest = await send_all(server, [good] * 500)

    assert max(await slow) < 30
    assert set(statuses) == {200}
    assert longest < _ANSWER_WITHIN_S
    await asyncio.to_thread(is_well, server)


SHAPES: dict[str, bytes] = {
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    "a huge chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
    "no number": HEAD + b"Content-Length: two\r\n\r\n{}",
    "a plus": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a space before the colon": HEAD + b"Content-Length : 2\r\n\r\n{}",
    "a folded line": HEAD + b"X: 1\r\n 2\r\nContent-Length: 2\r\n\r\n{}",
    "bare returns": HEAD.replace(b"\r\n", b"\r") + b"\r\r",
    "no host": b"POST /v1/logs HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "two hosts": HEAD + b"Host: evil.test\r\nContent-Length: 2\r\n\r\n{}",
    "many headers": HEAD + b"".join(b"X-%d: %s\r\n" % (n, b"x" * 100) for n in range(1000)) + b"\r\n",
    "a long header": HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "a long path": b"POST /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "half a path": b"POST /v1/%ff%fe%00logs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}",
    "another version": b"POST /v1/logs HTTP/3.7\r\nHost: 127.0.0.1\r\n\r\n",
    "a whole address": b"POST http://evil.test/v1/logs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}",
    "an upgrade": HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    "another expectation": HEAD + b"Expect: 200-maybe\r\nContent-Length: 2\r\n\r\n{}",
    "less than it says": HEAD + b"Content-Length: 50\r\n\r\n{}",
    "more than it says": HEAD + b"Content-Length: 2\r\n\r\n{}{}{}{}",
    "TRACE": b"TRACE /v1/logs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "CONNECT": b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


def test_what_is_wrong_about_the_request_itself_is_no_failure_of_ours(server: Server) -> None:
    """Shapes with which others were led to take one request for two, and some plain nonsense."""
    for name, shape in SHAPES.items():
        with socket.create_connection(("127.0.0.1", port_of(server)), 10) as line:
            line.sendall(shape)
            line.shutdown(socket.SHUT_WR)
            answer = b""
            with suppress(ConnectionError):  # when it was ended while there was still more to read
                while part := line.recv(65536):
                    answer += part
        statuses = [int(one[:3]) for one in answer.split(b"HTTP/1.1 ")[1:]]
        assert len(statuses) <= 2, name
        assert not [status for status in statuses if status >= 500], name
        if name in ("two lengths", "length and chunks", "an unknown coding", "no number", "no host", "two hosts"):
            assert statuses in ([400], [501], []), name
    is_well(server)
    assert server.said.count("Invalid HTTP request") == 1, "one line a minute"
    assert "tocsin: 1 request refused unread" in server.said
