"""A service that leaks: warned of before its limit, started anew at it, and who reads that is told what grew."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from tests.processes import Service, rows_of
from tests.waiting import eventually
from tocsin.store import open_store
from tocsin.store.schema import error_groups

LIMIT = "200M"

# `/leak/N` keeps objects of 8 KB for ever, until N MB are resident; `/slow` answers after a second. `/work` takes 35 MB
# for as long as a request.
SHOP = """
import asyncio
import os
import uvicorn

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

class Order:
    def __init__(self):
        self.body = bytearray(8192)

KEPT = []

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    kind, _, number = scope["path"][1:].partition("/")
    if kind == "leak":
        while resident() < int(number) * 2**20:
            KEPT.append(Order())
    elif kind == "slow":
        print("slow: begun", flush=True)
        await asyncio.sleep(1)
    elif kind == "work":
        taken = [Order() for _ in range(35 * 128)]
        await asyncio.sleep(0.1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
    if kind == "slow":
        print("slow: answered", flush=True)

uvicorn.run(app, port=0)
"""


@contextmanager
def shop(folder: Path, database_url: str, *options: str) -> Iterator[Service]:
    (folder / "shop.py").write_text(SHOP)
    argv = (*options, "--max-memory", LIMIT, "--", "python", "shop.py")
    with Service(folder, database_url, *argv, TOCSIN_SERVICE="shop") as service:
        yield service


def row_of(service: Service, exception_type: str | None) -> Any:
    rows = [row for row in rows_of(service.database_url) if row.exception_type == exception_type]
    return rows[0] if rows else None


_NEVER_TAKEN_S = 0.5
"""A connection that ends sooner waited for a server that has just stopped to listen; `/slow` takes a second."""


class Customers:
    """Some that ask for `/slow` one time after the other, until the server takes nothing more."""

    def __init__(self, address: str, count: int) -> None:
        self.answers: Counter[int] = Counter()
        self.cut_off: list[Exception] = []
        self._address = address
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        host = self._address.removeprefix("http://")
        while True:
            connection = http.client.HTTPConnection(host, timeout=20)
            try:
                connection.connect()
            except OSError:  # it has stopped
                return
            asked_at = time.monotonic()
            try:
                connection.request("GET", "/slow")
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as problem:
                if time.monotonic() - asked_at > _NEVER_TAKEN_S:
                    self.cut_off.append(problem)
                return
            finally:
                connection.close()
            self.answers[answer.status] += 1
            if answer.status == 503:
                return

    def are_done(self) -> bool:
        """Whether all of them have had their last answer."""
        return not any(thread.is_alive() for thread in self._threads)


def test_a_leaking_service_is_warned_of_and_started_anew_with_its_requests_done(
    tmp_path: Path, postgres_url: str
) -> None:
    with shop(tmp_path, postgres_url, "--restart") as service:
        service.get("/leak/165")
        warning = eventually(lambda: row_of(service, None), 20)
        assert (warning.severity, warning.mechanism, warning.service) == ("high", "memory", "shop")
        assert "% of its limit: " in warning.message and "of 200 MB (--max-memory)" in warning.message
        assert "grew most: shop.Order" in warning.message
        assert "the list shop.KEPT has " in warning.message and "items (shop.Order)" in warning.message
        assert row_of(service, "MemoryLimit") is None

        customers = Customers(service.address, 5)
        eventually(lambda: service.get("/slow") == 200)
        service.get("/leak/230")
        eventually(customers.are_done, 20)
        restarted = eventually(lambda: row_of(service, "MemoryLimit"), 20)

        assert not customers.cut_off
        assert service.said().count("slow: begun") == service.said().count("slow: answered")  # whoever was taken
        assert customers.answers[200] >= 5
        assert restarted.severity == "medium"
        assert "of memory, more than 200 MB: stopped, and started again; grew most: shop.Order" in restarted.message
        assert "the list shop.KEPT has " in restarted.message
        eventually(lambda: service.said().count("startup complete") == 2, 20)
        assert _groups(postgres_url) == {("memory", 1), ("process-exit", 1)}


def test_a_busy_service_that_does_not_leak_is_let_alone(tmp_path: Path, sqlite_url: str) -> None:
    """Its memory goes up and down, to more than half of its limit."""
    with shop(tmp_path, sqlite_url) as service:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            threads = [threading.Thread(target=service.get, args=("/work",)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        assert service.stop() == 0

    assert not rows_of(sqlite_url)


def _groups(database_url: str) -> set[tuple[str, int]]:
    def work(connection: Connection) -> set[tuple[str, int]]:
        query = select(error_groups.c.title, error_groups.c.count)
        return {
            ("memory" if title.startswith("memory is") else "process-exit", count)
            for title, count in connection.execute(query)
        }

    store = open_store(database_url)
    try:
        return store.read_now(work)
    finally:
        store.close_now()
