"""The line at the start of `tocsin run`: where errors go, and whether a server reads there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.postgres import PostgresServer, missing_part
from tests.processes import ROOT
from tocsin.alerts.scheduler import LEASE
from tocsin.destination import LIMIT_S, told
from tocsin.settings import Settings
from tocsin.store import leases, open_store


def lead(url: str, ttl_s: float) -> None:
    """A server that looks for what is to ring, or did."""
    store = open_store(url)
    store.write_now(leases.acquire, LEASE, "host:1:x", ttl_s)
    store.close_now()


@contextmanager
def listening(status: int | None) -> Iterator[int]:
    """A port that answers every request with a status, or takes connections and never says a word."""
    if status is None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield silent.getsockname()[1]
        return
    answer = status

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.path, self.rfile.read(int(self.headers["content-length"])), self.headers["authorization"]
            self.send_response(answer if asked == ("/v1/logs", b"{}", "Bearer ingest") else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_database_with_a_server_is_told_from_one_without(database_url: str) -> None:
    settings = Settings(database_url=database_url)

    assert told(settings).endswith(
        ", but no server reads there: nothing will ring until 'tocsin serve' runs on the same database"
    )
    lead(database_url, 60)
    assert told(settings) == f"{settings.shown_database()}, and a server reads there"
    lead(database_url, -1)  # it is gone, and the row is left
    assert "no server reads there" in told(settings)


def test_a_database_that_nobody_has_prepared_has_no_server(empty_database_url: str) -> None:
    assert "no server reads there" in told(Settings(database_url=empty_database_url))


def test_the_default_file_says_whose_server_would_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users have two default files: the line says how both meet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    found = told(Settings())

    assert "until 'tocsin serve' runs as user " in found
    assert found.endswith("for another set TOCSIN_DATABASE_URL for both, or TOCSIN_ENDPOINT")


def test_a_file_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(database_url=f"sqlite:///{tmp_path}/file/tocsin.db", spool_dir="/spool")

    found = told(settings)

    assert "which cannot be made by user" in found
    assert "they wait in /spool; set TOCSIN_DATABASE_URL for both, or TOCSIN_ENDPOINT" in found


def test_a_file_of_another_user_is_told() -> None:
    """Asked as a user who may read it and no more, which needs a test run by root."""
    if os.getuid() != 0:
        missing_part("a second user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "tocsin.db").write_text("")
        code = (
            "import os, sys; from tocsin.destination import told; from tocsin.settings import Settings;"
            "os.setuid(65534); print(told(Settings(database_url=sys.argv[1], spool_dir='/spool')))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, f"sqlite:///{folder}/tocsin.db"],
            env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )

    assert "tocsin.db, which belongs to user root and cannot be written by user nobody" in done.stdout


@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "silent"])
def test_a_database_that_is_away_holds_nothing_up(is_silent: bool) -> None:
    """No answer within the bound is an answer; no password is shown."""
    with listening(None) as port:
        host = f"127.0.0.1:{port}" if is_silent else "127.0.0.1:1"
        settings = Settings(database_url=f"postgresql://shop:geheim77@{host}/shop", spool_dir="/spool")
        begun = time.monotonic()
        found = told(settings)
        took_s = time.monotonic() - begun

    assert found == f"PostgreSQL {host}/shop, which does not answer now: they wait in /spool"
    assert took_s < LIMIT_S + 0.5


def test_a_server_that_refuses_is_not_taken_for_one_that_is_away(session_postgres: PostgresServer) -> None:
    url = session_postgres.url_of("no_such_database")

    found = told(Settings(database_url=url, spool_dir="/spool"))

    assert 'which refuses: database "no_such_database" does not exist; they wait in /spool; put TOCSIN_DAT' in found


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (200, "and a server answers there"),
        (
            401,
            "where the server does not take this token (401): they wait in /spool;"
            " set TOCSIN_INGEST_TOKEN to the server's",
        ),
        (503, "where the server takes nothing just now (503): they wait in /spool"),
        (404, "where something else than a server answers (404 for /v1/logs): they wait in /spool"),
        (None, "which does not answer now: they wait in /spool"),
    ],
)
def test_a_server_is_asked_whether_it_would_take_errors(status: int | None, end: str) -> None:
    """That it lives is not enough: one that refuses the token takes nothing for ever."""
    with listening(status) as port:
        settings = Settings(endpoint=f"http://127.0.0.1:{port}", ingest_token="ingest", spool_dir="/spool")

        assert told(settings) == f"http://127.0.0.1:{port}, {end}"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("9999", "where a newer tocsin is at work (schema 9999): they wait in /spool until that version is installed"),
        (
            "0001",
            "whose schema 0001 is of an older tocsin: they wait in /spool until `tocsin migrate` or its server is",
        ),
    ],
)
def test_a_schema_that_this_one_cannot_use_is_told(found: str, said: str, database_url: str) -> None:
    """Who has SQLite brings an older one up to date by itself."""
    store = open_store(database_url)
    table = "tocsin.tocsin_version" if store.dialect == "postgresql" else "tocsin_version"
    store.write_now(lambda connection: connection.exec_driver_sql(f"UPDATE {table} SET version_num = '{found}'"))
    store.close_now()
    lead(database_url, 60)

    answer = told(Settings(database_url=database_url, spool_dir="/spool"))

    assert (said in answer) == (found == "9999" or database_url.startswith("postgresql"))


def test_a_database_that_takes_no_writes_is_told(postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    store = open_store(postgres_url)
    store.write_now(lambda c: c.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    store.close_now()

    assert "which takes no writes, as a standby does: they wait in /spool" in told(
        Settings(database_url=postgres_url, spool_dir="/spool")
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "which is a folder: they wait in /spool; put TOCSIN_DATABASE_URL right"),
        (lambda path: path.write_text("port = 5432\n" * 20), "which is no database of SQLite: they wait in /spool"),
    ],
    ids=["folder", "other file"],
)
def test_what_is_no_file_of_sqlite_is_told(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "tocsin.db"
    make(path)

    assert said in told(Settings(database_url=f"sqlite:///{path}", spool_dir="/spool"))


def test_a_hoster_s_parameters_are_taken(postgres_url: str) -> None:
    lead(postgres_url, 60)

    assert told(Settings(database_url=f"{postgres_url}?sslmode=prefer&pgbouncer=true")).endswith("a server reads there")
