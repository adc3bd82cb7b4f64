"""The line at the start of `tocsin run`: where errors go, and whether a server reads there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
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
        def do_GET(self) -> None:
            self.send_response(answer if self.path == "/livez" else 404)
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

    assert "which cannot be made and cannot be written by user" in found
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


def test_a_server_without_the_database_does_not_answer(postgres_server: PostgresServer) -> None:
    url = postgres_server.url_of("no_such_database")

    assert "which does not answer now" in told(Settings(database_url=url))


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (200, "and a server answers there"),
        (404, "where something else than a server answers (404 for /livez)"),
        (None, "which does not answer now: they wait in /spool"),
    ],
)
def test_a_server_is_asked_whether_it_lives(status: int | None, end: str) -> None:
    with listening(status) as port:
        settings = Settings(endpoint=f"http://shop:geheim77@127.0.0.1:{port}", spool_dir="/spool")

        assert told(settings) == f"http://127.0.0.1:{port}, {end}"


def test_a_hoster_s_parameters_are_taken(postgres_url: str) -> None:
    lead(postgres_url, 60)

    assert told(Settings(database_url=f"{postgres_url}?sslmode=prefer&pgbouncer=true")).endswith("a server reads there")
