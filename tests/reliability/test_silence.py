"""
A service with three workers that is restarted, and one of whose workers stops dead: real processes, a real server.

A deploy is no alarm, however often; a worker of which nothing is heard is one, and its return is told.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from tests.postgres import free_port
from tests.processes import environment_of
from tests.standin.telegram import TOKEN as BOT
from tests.standin.telegram import TelegramStandIn
from tests.test_serve import TOKEN, Server, serving
from tests.waiting import eventually
from tocsin.store import Store, open_store
from tocsin.store.schema import instances

WSGI = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
GUNICORN = "gunicorn program:app --workers 3 --timeout 300 --bind 127.0.0.1:{port}"
UVICORN = "uvicorn program:app --workers 3 --log-level warning --port {port}"
WORKERS = 3
_SOON_S = 60  # on a machine that does much else


class Shop:
    """A service with three workers, which can be stopped and started again."""

    def __init__(self, folder: Path, command: str, program: str, environ: dict[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._command = command.format(port=free_port())
        self.starts = 0
        folder.mkdir(exist_ok=True)
        (folder / "program.py").write_text(program)

    def start(self) -> None:
        self.starts += 1
        with (self._folder / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tocsin", "run", "--", *self._command.split()],
                cwd=self._folder,
                env=self._environ,
                stdout=output,
                stderr=output,
            )

    def until_workers_boot(self) -> None:
        """Of gunicorn, which says so."""
        said = self._folder / "output.txt"
        eventually(lambda: said.read_text().count("Booting worker") == WORKERS * self.starts, _SOON_S)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(30) == 0

    def end(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for one in reversed(psutil.Process(self._process.pid).children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGCONT)
                    one.terminate()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


@contextmanager
def watched(
    folder: Path, url: str, command: str, program: str, *, silent_after_s: float, way: str
) -> Iterator[tuple[Shop, TelegramStandIn, Store]]:
    """A shop that runs, and a server that rings: beside it, or where it writes to, or where it sends to."""
    here = folder / "shop"
    here.mkdir()
    with (
        TelegramStandIn() as telegram,
        serving(
            folder,
            TOCSIN_TOKEN=TOKEN,
            TOCSIN_DATABASE_URL=url,
            TOCSIN_TELEGRAM_TOKEN=BOT,
            TOCSIN_TELEGRAM_CHAT_IDS="-1001",
            TOCSIN_TELEGRAM_API_URL=telegram.api_url,
            TOCSIN_SILENT_AFTER_S=str(silent_after_s),
            TOCSIN_CHECK_INTERVAL_S="0.5",
        ) as server,
    ):
        server.until_ready()
        store = open_store(url)
        shop = Shop(here, command, program, _environ(folder, here, url, server, way))
        shop.start()
        try:
            yield shop, telegram, store
        finally:
            shop.end()
            store.close_now()


def _environ(folder: Path, here: Path, url: str, server: Server, way: str) -> dict[str, str]:
    environ = environment_of(here, url, TOCSIN_SERVICE="shop")
    if way == "beside":
        environ["TOCSIN_SPOOL_DIR"] = str(folder / "spool")
    if way == "endpoint":
        environ |= {"TOCSIN_ENDPOINT": server.address, "TOCSIN_TOKEN": TOKEN}
    return environ


def rows(store: Store) -> list[Any]:
    return list(store.read_now(lambda connection: connection.execute(select(instances)).all()))


def alive(store: Store) -> list[Any]:
    return [row for row in rows(store) if row.ended_at is None]


def alarms(telegram: TelegramStandIn) -> list[str]:
    """What was rung because of silence, and how each message reads now."""
    return [one.text for one in telegram.messages if "is silent" in one.text]


def until_up(store: Store, within_s: float = _SOON_S) -> None:
    """Until its workers and who starts them have their rows, and no others are open."""
    eventually(lambda: len(alive(store)) == 1 + WORKERS and all(row.beats_every_s for row in alive(store)), within_s)


def worker_of(store: Store) -> Any:
    """The row of one worker: the first of these processes has started the others."""
    return max(alive(store), key=lambda row: row.started_at)


@pytest.mark.gate
def test_a_service_on_postgresql_without_a_server_beside_it_is_heard_all_the_same(
    tmp_path: Path, postgres_url: str
) -> None:
    """From its second minute on, by itself: what is restarted before that has no row at all."""
    with watched(tmp_path, postgres_url, GUNICORN, WSGI, silent_after_s=30.0, way="direct") as (shop, telegram, store):
        until_up(store, 150)
        shop.stop()
        assert alive(store) == []
        shop.start()
        shop.until_workers_boot()
        shop.stop()
        shop.start()
        until_up(store, 150)
        assert len(rows(store)) == 2 * (1 + WORKERS)

        worker = worker_of(store)
        os.kill(worker.pid, signal.SIGSTOP)
        eventually(lambda: alarms(telegram), 150)
        os.kill(worker.pid, signal.SIGCONT)
        eventually(lambda: any("is heard of again" in one.text for one in telegram.messages), 120)
        assert sum("CRITICAL #1 new" in text for text in alarms(telegram)) == 1


@pytest.mark.parametrize(
    ("times", "command", "program", "way", "silent_after_s"),
    [
        pytest.param(3, GUNICORN, WSGI, "beside", 10.0, id="short"),
        pytest.param(10, GUNICORN, WSGI, "beside", 30.0, id="gunicorn", marks=pytest.mark.gate),
        pytest.param(10, UVICORN, ASGI, "beside", 30.0, id="uvicorn", marks=pytest.mark.gate),
        pytest.param(10, GUNICORN, WSGI, "endpoint", 30.0, id="endpoint", marks=pytest.mark.gate),
    ],
)
def test_restarts_are_no_silence_and_a_worker_that_stops_dead_is(
    tmp_path: Path, sqlite_url: str, times: int, command: str, program: str, way: str, silent_after_s: float
) -> None:
    with watched(tmp_path, sqlite_url, command, program, silent_after_s=silent_after_s, way=way) as (
        shop,
        telegram,
        store,
    ):
        until_up(store)
        for _ in range(times):
            shop.stop()
            eventually(lambda: alive(store) == [], _SOON_S)
            shop.start()
            until_up(store)
        assert len(rows(store)) == (1 + WORKERS) * (1 + times)

        worker = worker_of(store)
        os.kill(worker.pid, signal.SIGSTOP)
        if command == UVICORN:  # it kills a worker that does not answer, and begins another
            eventually(lambda: len(rows(store)) > (1 + WORKERS) * (1 + times), _SOON_S)
            until_up(store)
            assert alarms(telegram) == []
            return
        eventually(lambda: alarms(telegram), 60 + 5 * silent_after_s if way == "beside" else 300)
        (alarm,) = alarms(telegram)
        assert re.search(rf"shop is silent: pid {worker.pid} on \S+ has said nothing since", alarm)
        os.kill(worker.pid, signal.SIGCONT)

        eventually(lambda: any("is heard of again" in one.text for one in telegram.messages), 120)
        assert sum("CRITICAL #1 new" in text for text in alarms(telegram)) == 1
