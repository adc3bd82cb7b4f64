"""
Under another supervisor: restarts are no deaths, whatever way the signals come; a real crash is one.

The service is a uvicorn application under `tocsin run`, with requests that fail all the while, and some that
are still under way when the stop comes.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pm2 import pm2_daemon
from tests.postgres import free_port
from tests.processes import drain_rest, environment_of, rows_of
from tests.waiting import eventually

APP = """
import asyncio
import ctypes

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def ok(request):
    return PlainTextResponse("ok")


async def fail(request):
    raise ValueError("no such order")


async def slow(request):
    await asyncio.sleep(float(request.path_params["seconds"]))
    return PlainTextResponse("done")


async def crash(request):
    ctypes.string_at(0)


app = Starlette(routes=[
    Route("/ok", ok), Route("/fail", fail), Route("/slow/{seconds}", slow), Route("/crash", crash)
])
"""

_UP_S = 30
_PACE_S = 0.03


class Shop:
    """The service as its clients see it: on one port, through all restarts."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.database_url = database_url
        self.port = free_port()
        (folder / "app.py").write_text(APP)

    @property
    def command(self) -> list[str]:
        serve = ["uvicorn", "app:app", "--port", str(self.port), "--log-level", "warning"]
        return [sys.executable, "-m", "tocsin", "run", "--", *serve]

    @property
    def environ(self) -> dict[str, str]:
        return environment_of(self.folder, self.database_url, TOCSIN_SERVICE="shop")

    def get(self, path: str, timeout_s: float = 20) -> int | None:
        """The status; None where nobody listens, which is when nothing can have happened."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            try:
                connection.connect()
            except OSError:
                return None
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def wait_until_up(self) -> None:
        def is_up() -> bool:
            with suppress(OSError, http.client.HTTPException):
                return self.get("/ok") == 200
            return False

        eventually(is_up, _UP_S)


class Load:
    """Requests that fail, one after another, for as long as it goes on."""

    def __init__(self, shop: Shop) -> None:
        self.answered = 0
        self.unknown = 0  # the answer got lost, so nobody knows whether it failed inside
        self._shop = shop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_PACE_S):
            try:
                if self._shop.get("/fail") == 500:
                    self.answered += 1
            except (OSError, http.client.HTTPException):
                self.unknown += 1


class Under:
    """A request on its way, asked in a thread of its own."""

    def __init__(self, shop: Shop, path: str) -> None:
        self.status: int | None = None
        self._thread = threading.Thread(target=self._ask, args=(shop, path))
        self._thread.start()

    def _ask(self, shop: Shop, path: str) -> None:
        with suppress(OSError, http.client.HTTPException):
            self.status = shop.get(path, 60)

    def answer(self) -> int | None:
        self._thread.join()
        return self.status


def group_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all that came of it: what systemd has in a unit's control group."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    return []


class Unit:
    """Start and stop as systemd does by default: every process of the group gets the signal."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self.process: subprocess.Popen[bytes] | None = None
        self.codes: list[int] = []

    def start(self) -> None:
        with (self._shop.folder / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                self._shop.command,
                cwd=self._shop.folder,
                env=self._shop.environ,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def stop(self, timeout_s: float = 20) -> None:
        assert self.process is not None
        group = group_of(self.process)
        self._signal(group, signal.SIGTERM)
        try:
            self.codes.append(self.process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            self._signal(group_of(self.process), signal.SIGKILL)
            self.codes.append(self.process.wait(10))
        psutil.wait_procs(group, 10)

    @staticmethod
    def _signal(group: list[psutil.Process], number: signal.Signals) -> None:
        for one in group:
            with suppress(psutil.NoSuchProcess):
                os.kill(one.pid, number)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self._signal(group_of(self.process), signal.SIGKILL)
            self.process.wait(10)


@contextmanager
def unit_of(shop: Shop) -> Iterator[Unit]:
    unit = Unit(shop)
    unit.start()
    try:
        shop.wait_until_up()
        yield unit
    finally:
        unit.kill()


def deaths_in(shop: Shop, load: Load) -> list[Any]:
    """What is stored beside the errors of the load, of which none may be missing and none doubled."""
    drain_rest(shop.folder, shop.database_url)
    rows = rows_of(shop.database_url)
    failed = sum(row.count for row in rows if row.exception_type == "ValueError")
    assert load.answered <= failed <= load.answered + load.unknown
    return [row for row in rows if row.exception_type != "ValueError"]


def restart_under_load(shop: Shop, restart: Any, times: int, slow: dict[int, float]) -> Load:
    """Restart so often; at those in `slow`, a request is under way that takes so many seconds more, and is answered."""
    with Load(shop) as load:
        for time in range(times):
            before = load.answered
            eventually(lambda before=before: load.answered >= before + 5, _UP_S)  # type: ignore[misc]
            under = Under(shop, f"/slow/{slow[time]}") if time in slow else None
            if under is not None:
                eventually(lambda: active_requests(shop) >= 1, 10)
            restart()
            if under is not None:
                assert under.answer() == 200
            shop.wait_until_up()
    assert load.answered >= 5 * times
    return load


def active_requests(shop: Shop) -> int:
    """Requests under way in the service, as its .live file says."""
    from tocsin.exporter.life import last_words

    found = 0
    for path in (shop.folder / "spool").glob("*.live"):
        head = path.read_bytes()[:64]
        if len(head) == 64:
            found += last_words(memoryview(head).cast("Q")).active_requests
    return found


RESTARTS = [
    pytest.param(2, {1: 2.0}, id="short"),
    pytest.param(20, {4: 10.0, 9: 10.0, 14: 10.0}, id="long", marks=pytest.mark.gate),
]


@pytest.mark.parametrize(("times", "slow"), RESTARTS)
def test_restarts_by_pm2_are_no_deaths(tmp_path: Path, sqlite_url: str, times: int, slow: dict[int, float]) -> None:
    """PM2 signals every process of the tree, waits, and starts the program again; then a real crash is one death."""
    shop = Shop(tmp_path, sqlite_url)
    with pm2_daemon() as pm2:
        pm2.start(
            tmp_path,
            {
                "name": "shop",
                "script": shop.command[0],
                "args": shop.command[1:],
                "interpreter": "none",
                "exec_mode": "fork",
                "kill_timeout": 20_000,
                "cwd": str(tmp_path),
                "env": shop.environ,
                "out_file": str(tmp_path / "output.txt"),
                "error_file": str(tmp_path / "output.txt"),
            },
        )
        shop.wait_until_up()

        load = restart_under_load(shop, lambda: pm2.do("restart", "shop"), times, slow)

        assert deaths_in_running(shop, load) == []
        restarts = pm2.app("shop")["pm2_env"]["restart_time"]
        assert restarts == times

        with suppress(OSError, http.client.HTTPException):
            shop.get("/crash")
        eventually(lambda: pm2.app("shop")["pm2_env"]["restart_time"] == times + 1, 20)
        shop.wait_until_up()
        eventually(lambda: len(deaths_in_running(shop, load)) == 1, 20)
        pm2.do("stop", "shop")
    (death,) = deaths_in(shop, load)
    assert (death.severity, death.service) == ("critical", "shop")
    assert "SIGSEGV" in death.message
    assert "in crash" in death.stack


def deaths_in_running(shop: Shop, load: Load) -> list[Any]:
    """The same while the service runs, whose spool is its own."""

    def is_all_there() -> bool:
        stored = sum(row.count for row in rows_of(shop.database_url) if row.exception_type == "ValueError")
        return bool(stored >= load.answered)

    eventually(is_all_there, 20)
    return [row for row in rows_of(shop.database_url) if row.exception_type != "ValueError"]


@pytest.mark.parametrize(("times", "slow"), RESTARTS)
def test_restarts_of_a_whole_group_are_no_deaths(
    tmp_path: Path, sqlite_url: str, times: int, slow: dict[int, float]
) -> None:
    shop = Shop(tmp_path, sqlite_url)
    with unit_of(shop) as unit:

        def restart() -> None:
            unit.stop()
            unit.start()

        load = restart_under_load(shop, restart, times, slow)
        unit.stop()

    assert set(unit.codes) == {0}
    assert deaths_in(shop, load) == []


def test_a_stop_that_runs_out_of_time_is_a_note(tmp_path: Path, sqlite_url: str) -> None:
    """`TimeoutStopSec` shorter than what a request takes: no death, and no alarm, but people can see why."""
    shop = Shop(tmp_path, sqlite_url)
    with unit_of(shop) as unit, Load(shop) as load:
        under = Under(shop, "/slow/60")
        eventually(lambda: active_requests(shop) >= 1, 10)
        unit.stop(timeout_s=1.0)
        assert under.answer() is None

    (note,) = deaths_in(shop, load)
    assert (note.severity, note.service) == ("medium", "shop")
    assert re.search(r"ran out of time after [12] s$", note.message)


def test_a_kill_of_the_whole_group_is_one_death(tmp_path: Path, sqlite_url: str) -> None:
    """Nobody is left to tell: whoever comes next finds it by the marker."""
    shop = Shop(tmp_path, sqlite_url)
    with unit_of(shop) as unit, Load(shop) as load:
        eventually(lambda: load.answered > 3, 10)
        unit.kill()

    (death,) = deaths_in(shop, load)
    assert (death.severity, death.service) == ("critical", "shop")
    assert "likely" in death.message
