"""Node services: their standard instrumentation alone, and with the file from docs/node.md."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from tests.interop.node import TOCSIN_FILE, node_shop
from tests.processes import rows_of
from tests.standin.repeater import repeating
from tests.test_serve import serving
from tests.waiting import eventually
from tocsin.store import open_store
from tocsin.store.schema import error_groups

ARRIVES_S = 30


def groups_of(url: str) -> dict[str, Any]:
    """The groups by their titles."""

    def work(connection: Connection) -> list[Any]:
        return list(connection.execute(select(error_groups)).all())

    store = open_store(url)
    try:
        # Which order came first in a batch is chance.
        return {re.sub(r"(order|price of) \d", r"\1 N", row.title): row for row in store.read_now(work)}
    finally:
        store.close_now()


def counts_of(url: str) -> dict[str, int]:
    return {title: row.count for title, row in groups_of(url).items()}


def row_with(url: str, text: str) -> Any:
    found: Callable[[], Any] = lambda: next((row for row in rows_of(url) if text in row.message), None)  # noqa: E731
    return eventually(found, ARRIVES_S)


@pytest.mark.parametrize(("protocol", "database"), [("http/protobuf", "postgres_url"), ("http/json", "sqlite_url")])
def test_each_error_of_an_express_service_counts_once(
    protocol: str, database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Three spans and a log record tell of it, each batch comes five times: one group a kind, counts exact."""
    database_url: str = request.getfixturevalue(database)
    with (
        serving(tmp_path, TOCSIN_DATABASE_URL=database_url) as server,
        repeating(server.address, times=5) as endpoint,
        node_shop(tmp_path / "shop", endpoint, protocol=protocol) as shop,
    ):
        for order in range(3):
            for route in ("sync", "async", "code", "handled", "both"):
                shop.get(f"/{route}/{order}")
            shop.get("/ok")
            shop.get("/expected")
        expected = {
            "PaymentRefused: order N cannot be paid": 3,
            "TypeError: order N has no items": 3,
            "ECONNREFUSED: connect ECONNREFUSED 127.0.0.1:5432": 3,
            "RangeError: order N is too long": 3,
            "Error: order N is here and there": 3,
        }
        eventually(lambda: sum(counts_of(database_url).values()) >= sum(expected.values()), ARRIVES_S)

        groups = groups_of(database_url)
        assert {title: group.count for title, group in groups.items()} == expected
        assert {group.service for group in groups.values()} == {"shop"}
        assert groups["PaymentRefused: order N cannot be paid"].culprit.endswith("shop in charge")
        assert groups["ECONNREFUSED: connect ECONNREFUSED 127.0.0.1:5432"].category == "database"


def test_an_error_has_the_request_that_it_came_from(sqlite_url: str, tmp_path: Path) -> None:
    """Joined from the other spans of its trace, which have no exception themselves."""
    with (
        serving(tmp_path, TOCSIN_DATABASE_URL=sqlite_url) as server,
        node_shop(tmp_path / "shop", server.address) as shop,
    ):
        assert shop.get("/sync/7") == 500
        assert shop.get("/handled/8") == 200

        def is_joined() -> bool:
            return (
                all("url.path" in (row.context or {}) for row in rows_of(sqlite_url)) and len(rows_of(sqlite_url)) == 2
            )

        eventually(is_joined, ARRIVES_S)
        unhandled, handled = row_with(sqlite_url, "order 7"), row_with(sqlite_url, "order 8")

    assert unhandled.context["http.request.method"] == "GET"
    assert unhandled.context["http.route"] == "/sync/:order"
    assert unhandled.context["url.path"] == "/sync/7"
    assert (unhandled.severity, unhandled.handled) == ("high", False)
    assert handled.handled is not False
    frames = unhandled.context["tocsin.frames"]
    assert [frame["function"] for frame in frames if frame["in_app"]][-1] == "charge"
    assert not any(frame["in_app"] for frame in frames if "node_modules" in frame["file"] or "node:" in frame["file"])


@pytest.mark.parametrize(
    ("path", "title", "mechanism"),
    [
        ("/crash", "PaymentRefused: order the last one cannot be paid", "uncaughtException"),
        ("/forgotten", "TypeError: order that nobody waits for has no items", "unhandledRejection"),
    ],
)
def test_with_the_documented_file_the_last_error_is_sent(
    path: str, title: str, mechanism: str, sqlite_url: str, tmp_path: Path
) -> None:
    """The process ends as it would without: with code 1, and what it said on stderr."""
    with (
        serving(tmp_path, TOCSIN_DATABASE_URL=sqlite_url) as server,
        node_shop(tmp_path / "shop", server.address, requires=str(TOCSIN_FILE)) as shop,
    ):
        shop.get(path)
        assert shop.process.wait(20) == 1
        row = row_with(sqlite_url, title.partition(": ")[2])

    assert (row.severity, row.handled, row.mechanism) == ("critical", False, mechanism)
    assert title.partition(": ")[2] in shop.said


@pytest.mark.parametrize("shuts_down", [True, False])
def test_what_happens_at_sigterm_is_sent(shuts_down: bool, sqlite_url: str, tmp_path: Path) -> None:
    """An error while shutting down; and a program without a handler of its own still ends."""
    with (
        serving(tmp_path, TOCSIN_DATABASE_URL=sqlite_url) as server,
        node_shop(
            tmp_path / "shop",
            server.address,
            requires=str(TOCSIN_FILE),
            OTEL_BSP_SCHEDULE_DELAY="60000",
            SHUTS_DOWN="1" if shuts_down else "",
        ) as shop,
    ):
        shop.get("/sync/1")  # still with the sender when the signal comes
        code = shop.stop(signal.SIGTERM)

        assert code == (0 if shuts_down else -signal.SIGTERM)
        row_with(sqlite_url, "order 1")
        if shuts_down:
            row_with(sqlite_url, "a file was left open")


@pytest.mark.parametrize("is_server_there", [True, False])
def test_an_exception_that_ends_a_watched_program_counts_once(
    is_server_there: bool, sqlite_url: str, tmp_path: Path
) -> None:
    """The file has told of it, and who watches need not; unless what it told has not arrived."""
    run = (sys.executable, "-m", "tocsin", "run", "--")
    with (
        serving(tmp_path, TOCSIN_DATABASE_URL=sqlite_url) as server,
        node_shop(
            tmp_path / "shop",
            server.address if is_server_there else "http://127.0.0.1:9",
            before=run,
            requires=str(TOCSIN_FILE),
            TOCSIN_DATABASE_URL=sqlite_url,
            TOCSIN_SPOOL_DIR=str(tmp_path / "spool"),
        ) as shop,
    ):
        shop.get("/crash")
        assert shop.process.wait(30) == 1
        row_with(sqlite_url, "the last one cannot be paid" if is_server_there else "exited with code 1")
        mechanisms = [row.mechanism for row in rows_of(sqlite_url)]

    assert mechanisms == ["uncaughtException" if is_server_there else "process-exit"]


def test_a_death_is_told_by_who_watches(sqlite_url: str, tmp_path: Path) -> None:
    """`kill -9`: nothing in the process can tell."""
    run = (sys.executable, "-m", "tocsin", "run", "--")
    with (
        serving(tmp_path, TOCSIN_DATABASE_URL=sqlite_url) as server,
        node_shop(
            tmp_path / "shop",
            server.address,
            before=run,
            TOCSIN_DATABASE_URL=sqlite_url,
            TOCSIN_SPOOL_DIR=str(tmp_path / "spool"),
        ) as shop,
    ):
        shop.get("/ok")
        children = Path(f"/proc/{shop.process.pid}/task/{shop.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert shop.process.wait(20) == -signal.SIGKILL
        row = row_with(sqlite_url, "SIGKILL")

    assert (row.severity, row.service) == ("critical", "shop")
