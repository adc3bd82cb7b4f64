"""
A stop in good order, of real programs under real servers: what is under way is answered, and nothing is an error.

The programs run without `tocsin run` around them, so that their exit codes are their own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import ROOT, drain_rest, environment_of, rows_of
from tests.waiting import eventually
from tocsin.failures import TableMissing
from tocsin.run import STARTUP_FOLDER

SHOP = """
import asyncio, os, time
from contextlib import asynccontextmanager
import tocsin
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
import tocsin.api

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # at once, and whole lines from two processes

async def slow(request):
    say("began", request.url.path)
    await asyncio.sleep(float(request.path_params["seconds"]))
    return PlainTextResponse("done")

def block(request):
    say("began", request.url.path)
    time.sleep(float(request.path_params["seconds"]))
    return PlainTextResponse("done")

async def stream(request):
    async def chunks():
        say("began", request.url.path)
        while True:
            yield b"x"
            await asyncio.sleep(0.05)
    return StreamingResponse(chunks())

@asynccontextmanager
async def lifespan(app):
    yield
    say("lifespan over")

@tocsin.on_shutdown
def first():
    say("first over")

@tocsin.on_shutdown
async def second():
    await asyncio.sleep(0.01)
    say("second over in", type(asyncio.get_running_loop()).__module__)

if os.environ.get("UNCOOPERATIVE"):
    @tocsin.on_shutdown
    def refuses():
        raise LookupError("cannot close")

    async def waits():
        await asyncio.sleep(60)

    def hangs():
        time.sleep(60)

    tocsin.on_shutdown(waits, timeout_s=0.2)
    tocsin.on_shutdown(hangs, timeout_s=0.2)

async def ok(request):
    return PlainTextResponse("ok")

app = Starlette(
    routes=[
        Route("/slow/{seconds}", slow),
        Route("/block/{seconds}", block),
        Route("/stream", stream),
        Route("/ok", ok),
        Mount("/tocsin", tocsin.api.create_app()),
    ],
    lifespan=lifespan,
)
"""

SERVER = """
import asyncio, sys
import uvicorn
from shop import app

class Server(uvicorn.Server):
    async def main_loop(self):
        await super().main_loop()
        await asyncio.sleep(0.6)  # between the signal and the end of its connections: long enough to see it

if __name__ == "__main__":
    Server(uvicorn.Config(app, port=0, loop=sys.argv[1], access_log=False)).run()
    print("not reached after a signal", flush=True)
"""


class Program:
    """A program that serves the shop."""

    def __init__(self, folder: Path, command: Sequence[str], database_url: str, environ: dict[str, str]) -> None:
        self.folder, self.database_url = folder, database_url
        (folder / "shop.py").write_text(SHOP)
        (folder / "server.py").write_text(SERVER)
        path = os.pathsep.join(map(str, (STARTUP_FOLDER, ROOT, folder)))
        settings = {"PYTHONPATH": path, "TOCSIN_TOKEN": "geheim", "TOCSIN_SERVICE": "shop", **environ}
        self._output = folder / "output.txt"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env=environment_of(folder, database_url, **settings),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.port = 0

    def said(self) -> str:
        return self._output.read_text("utf-8", "replace")

    def wait_until_up(self, starts: int) -> None:
        def port() -> int:
            assert self.process.poll() is None, self.said()
            found = re.search(r"http://127\.0\.0\.1:(\d+)", self.said())
            return int(found[1]) if found and self.said().count("startup complete") >= starts else 0

        self.port = eventually(port, 30)

    def client(self) -> httpx.Client:
        headers = {"Authorization": "Bearer geheim"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=20, trust_env=False)

    def ends(self) -> list[str]:
        """What it said of its end, in order."""
        return [line for line in self.said().splitlines() if " over" in line or "not reached" in line]

    def recorded(self) -> list[Any]:
        return recorded(self.folder, self.database_url)


class Under:
    """A request that is under way in a thread."""

    def __init__(self, shop: Program, path: str) -> None:
        self.status = 0
        self._thread = threading.Thread(target=self._get, args=(shop, path), daemon=True)
        self._thread.start()
        eventually(lambda: f"began {path}\n" in shop.said())

    def _get(self, shop: Program, path: str) -> None:
        with shop.client() as client:
            try:
                self.status = client.get(path).status_code
            except httpx.HTTPError:
                self.status = -1

    def answer(self) -> int:
        """The status, or -1 where the connection was cut."""
        self._thread.join(20)
        return self.status


@contextmanager
def program(folder: Path, database_url: str, *command: str, starts: int = 1, **environ: str) -> Iterator[Program]:
    running = Program(folder, command, database_url, environ)
    try:
        running.wait_until_up(starts)
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            try:
                running.process.wait(10)
            except subprocess.TimeoutExpired:
                running.process.kill()


def health(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/tocsin/api/debug/health").json()["server"]
    return found


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=pytest.mark.gate)])
def test_a_server_answers_what_is_under_way_and_refuses_the_rest(loop: str, tmp_path: Path, sqlite_url: str) -> None:
    """It ends by the signal, as without tocsin; health is true meanwhile, and nothing of it all is an error."""
    with program(tmp_path, sqlite_url, "server.py", loop) as shop, shop.client() as kept, shop.client() as asking:
        assert kept.get("/ok").status_code == 200
        under = Under(shop, "/slow/1.2")
        before = health(asking)
        assert (before["isShuttingDown"], before["activeRequests"]) == (False, 2)  # the other one asks

        shop.process.send_signal(signal.SIGTERM)

        during = eventually(lambda: (found := health(asking))["isShuttingDown"] and found)
        assert during["activeRequests"] == 2
        refused = kept.get("/ok")
        assert refused.status_code == 503
        assert (refused.headers["Retry-After"], refused.headers["Connection"]) == ("5", "close")
        assert asking.get("/tocsin/readyz").status_code == 503
        assert under.answer() == 200
        assert shop.process.wait(10) == -signal.SIGTERM
        home = "uvloop" if loop == "uvloop" else "asyncio.unix_events"
        assert shop.ends() == ["lifespan over", f"second over in {home}", "first over"]
        assert shop.recorded() == []


def test_what_a_stop_cuts_off_is_named(tmp_path: Path, sqlite_url: str) -> None:
    """Requests by route, age and stack; callbacks that raise or hang; and the program ends within its bounds."""
    bounds = program(tmp_path, sqlite_url, "server.py", "asyncio", TOCSIN_SHUTDOWN_TIMEOUT_S="0.2", UNCOOPERATIVE="1")
    with bounds as shop:
        late = [Under(shop, path) for path in ("/slow/50", "/block/20", "/stream")]

        shop.process.send_signal(signal.SIGTERM)

        assert shop.process.wait(15) == -signal.SIGTERM
        assert [one.answer() for one in late] == [500, 500, -1]
        assert shop.ends()[-2:] == ["second over in asyncio.unix_events", "first over"]
        rows = {row.message: row for row in shop.recorded()}
        cut = {message: row for message, row in rows.items() if "was cut off" in message}
        assert cut, (list(rows), shop.said())
        assert {message.partition(" was")[0]: row.severity for message, row in cut.items()} == dict.fromkeys(
            ("GET /slow/{seconds}", "GET /block/{seconds}", "GET /stream"), "medium"
        )
        for word, row in zip(("in slow", "in block", "in chunks"), cut.values(), strict=True):
            assert word in row.stack
            assert row.context["age_s"] > 0.2
        assert [row.mechanism for row in rows.values()] == ["shutdown"] * 3 + ["on_shutdown"] * 3
        assert [message for message, row in rows.items() if row.mechanism == "on_shutdown"] == [
            "hangs took longer than its 0.2 s in the shutdown",
            "waits took longer than its 0.2 s in the shutdown",
            "cannot close",
        ]
        assert all(row.severity == "high" for row in rows.values() if row.mechanism == "on_shutdown")


@pytest.mark.parametrize(
    ("command", "starts"),
    [
        pytest.param("gunicorn shop:app -b 127.0.0.1:0 -k uvicorn_worker.UvicornWorker", 1, id="gunicorn"),
        pytest.param("uvicorn shop:app --port 0 --workers 2", 2, id="uvicorn workers", marks=pytest.mark.gate),
    ],
)
def test_workers_stop_in_good_order(command: str, starts: int, tmp_path: Path, sqlite_url: str) -> None:
    """On uvloop, which they take by themselves."""
    with program(tmp_path, sqlite_url, "-m", *command.split(), starts=starts) as shop:
        under = Under(shop, "/slow/0.8")

        shop.process.send_signal(signal.SIGTERM)

        assert under.answer() == 200
        assert shop.process.wait(15) == 0
        assert sorted(shop.ends()) == sorted(["lifespan over", "second over in uvloop", "first over"] * starts)
        assert shop.recorded() == []


PLAIN = """
import asyncio, os, signal, sys, threading, time
import tocsin

tocsin.init()
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
tocsin.on_shutdown(lambda: say("last"))

async def closes():
    await asyncio.sleep(0)
    say("first", asyncio.get_running_loop() is home)

home = None
"""

SYNC = f"""{PLAIN}
tocsin.on_shutdown(closes)
say("up")
while True:
    time.sleep(0.01)
"""

ASYNC = f"""{PLAIN}
async def main():
    global home
    home = asyncio.get_running_loop()
    tocsin.on_shutdown(closes)
    say("up")
    while True:
        await asyncio.sleep(0.01)

asyncio.run(main())
"""

OWN = f"""{PLAIN}
def stop(number, frame):
    say("own")
    sys.exit(7)

assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.signal(signal.SIGTERM, stop) is signal.SIG_DFL
assert signal.getsignal(signal.SIGTERM) is stop
say("up")
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("code", "number", "says", "ends"),
    [
        (SYNC, signal.SIGTERM, ["first False", "last"], -signal.SIGTERM),
        (SYNC, signal.SIGINT, ["first False", "last"], -signal.SIGINT),
        (ASYNC, signal.SIGTERM, ["first True", "last"], -signal.SIGTERM),
        (ASYNC, signal.SIGINT, ["first True", "last"], -signal.SIGINT),
        (OWN, signal.SIGTERM, ["own", "last"], 7),
    ],
    ids=["sync TERM", "sync INT", "asyncio TERM", "asyncio INT", "own handler"],
)
def test_a_plain_program_ends_as_without_tocsin(
    code: str, number: signal.Signals, says: list[str], ends: int, tmp_path: Path, sqlite_url: str
) -> None:
    """By the signal, or in its own way; the callbacks run before, in its own loop where it has one."""
    (tmp_path / "plain.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, "plain.py"],
        cwd=tmp_path,
        env=environment_of(tmp_path, sqlite_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "up\n"

        process.send_signal(number)

        assert process.stdout.read().splitlines() == says
        assert process.wait(10) == ends
    assert recorded(tmp_path, sqlite_url) == []


def recorded(folder: Path, database_url: str) -> list[Any]:
    """What is stored once all that the program left is."""
    drain_rest(folder, database_url)
    try:
        return rows_of(database_url)
    except TableMissing:  # nothing ever was
        return []
