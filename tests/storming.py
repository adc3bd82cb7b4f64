"""A service in a storm of errors, as a real process; and a client that counts how long its requests take."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.processes import environment_of
from tests.waiting import eventually

CLIENTS: Final = 8

PROGRAM: Final = """
import asyncio, itertools, json, logging, os, resource, sys, time

REPORTER = os.environ["STORM_REPORTER"]
if REPORTER == "tocsin":
    import tocsin
    tocsin.init()
    report = tocsin.track_error
elif REPORTER == "sentry":
    import sentry_sdk
    from sentry_sdk.transport import Transport

    class Nowhere(Transport):
        def capture_envelope(self, envelope): ...

    sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", transport=Nowhere)
    report = sentry_sdk.capture_exception
else:
    def report(error): ...

told = {}


class OrderLost(Exception):
    pass


def lose(number):
    raise OrderLost(f"order {number} of {chr(97 + number % 26) * (number % 7 + 1)}{number} is lost")


def places(count):
    made = []
    for number in range(count):
        space = {"OrderLost": OrderLost, "__name__": "shop.places"}
        text = f"def place_{number}(number):\\n    raise OrderLost(number)\\n"
        exec(compile(text, os.path.abspath("places.py"), "exec"), space)
        made.append(space[f"place_{number}"])
    return itertools.cycle(made)


async def storm(rate, count, functions):
    began = time.monotonic()
    done = 0
    while done < count:
        due = min(int((time.monotonic() - began) * rate) + 1, count)
        for done in range(done, min(due, done + 100)):
            try:
                next(functions)(done)
            except OrderLost as error:
                report(error)
        done += 1
        told.update(raised=done, took_s=time.monotonic() - began)
        await asyncio.sleep(0.001)
    told["is_over"] = True


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


tasks = []


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await receive()
    body = b"ok"
    if scope["path"] == "/storm":
        given = json.loads(scope["query_string"].replace(b"%22", b'"'))
        functions = places(given["places"]) if given.get("places") else itertools.repeat(lose)
        tasks.append(asyncio.create_task(storm(given["rate"], given["count"], functions)))
    elif scope["path"] == "/told":
        told["rss"] = resident()
        told["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        body = json.dumps(told).encode()
    else:
        await asyncio.sleep(0.02)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


@dataclass(frozen=True, slots=True)
class Times:
    """How long requests took, in milliseconds."""

    count: int
    p50: float
    p99: float


class StormingService:
    """
    The service under uvicorn; `with` waits until it answers, and ends it.

    Args:
        reporter: who gets to know of each error: ``tocsin``, ``sentry``, ``nobody``.
    """

    def __init__(self, folder: Path, reporter: str, database_url: str, **environ: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "shop.py").write_text(PROGRAM)
        self._output = folder / "output.txt"
        known = {"STORM_REPORTER": reporter, "TOCSIN_SERVICE": "shop", "TOCSIN_ENVIRONMENT": "production", **environ}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "shop:app", "--port", "0", "--no-access-log"],
                cwd=folder,
                env=environment_of(folder, database_url, **known),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.port = 0

    def __enter__(self) -> StormingService:
        def port() -> int | None:
            found = re.search(r"running on http://[\d.]+:(\d+)", self.said())
            assert self.process.poll() is None, self.said()
            return int(found[1]) if found else None

        try:
            self.port = eventually(port, 30) or 0
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            if self.process.poll() is None:
                self.process.kill()

    def said(self) -> str:
        """What it wrote so far."""
        return self._output.read_text("utf-8", "replace")

    def storm(self, rate: int, count: int, places: int = 0) -> None:
        """Begin to raise so many errors, so many a second; in one place, or in many in turn."""
        given = json.dumps({"rate": rate, "count": count, "places": places}, separators=(",", ":"))
        asyncio.run(_get(self.port, f"/storm?{given.replace(chr(34), '%22')}"))

    def told(self) -> dict[str, Any]:
        """What it says of itself: how many it has raised, in what time, and its memory in bytes."""
        found: dict[str, Any] = json.loads(asyncio.run(_get(self.port, "/told")))
        return found

    def through(self, within_s: float) -> dict[str, Any]:
        """The same, once the storm is over."""
        return eventually(lambda: found if "is_over" in (found := self.told()) else None, within_s) or {}

    def requests(self, seconds: float) -> Times:
        """Requests that take 20 ms each, by `CLIENTS` at a time, for so long."""
        taken = sorted(asyncio.run(_load(self.port, seconds)))
        at = [taken[math.ceil(part * len(taken)) - 1] for part in (0.5, 0.99)]
        return Times(len(taken), *at)


async def _get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await _ask(reader, writer, path)
    finally:
        writer.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = re.search(rb"content-length: (\d+)", head)
    return await reader.readexactly(int(length[1]) if length else 0)


async def _load(port: int, seconds: float) -> list[float]:
    taken: list[float] = []
    until = time.monotonic() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            before = time.perf_counter()
            await _ask(reader, writer, "/")
            taken.append((time.perf_counter() - before) * 1000)
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return taken
