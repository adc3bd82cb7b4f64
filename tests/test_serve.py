"""The server as a process: it starts whatever is missing, says what it does, and stops when asked."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.forking import Forked, begin_serving
from tests.postgres import PostgresServer
from tests.waiting import eventually

TOKEN = "a-token-for-tests"
_STARTS_WITHIN_S = 40  # on a busy machine
KNOWN = {"authorization": f"Bearer {TOKEN}"}


class Server:
    """
    A server in a process of its own.

    Args:
        is_fresh: an interpreter is started for it, whose memory is what a user's would be.
    """

    def __init__(
        self, folder: Path, *, host: str = "127.0.0.1", port: int = 0, is_fresh: bool = False, **settings: str
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))}
        defaults = {
            "TOCSIN_DATABASE_URL": f"sqlite:///{folder}/tocsin.db",
            "TOCSIN_SPOOL_DIR": f"{folder}/spool",
        }
        self.log = folder / f"server-{len(list(folder.glob('server-*')))}.log"
        self.log.touch()
        environ = kept | defaults | settings
        self.process: Forked | subprocess.Popen[bytes]
        if is_fresh:
            code = f"import sys; from tests.forking import begin_serving; sys.exit(begin_serving({host!r}, {port}))"
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    env=environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
                    cwd=folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        else:
            self.process = Forked(begin_serving, host, port, folder=folder, output=self.log, env=environ)

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def address(self) -> str:
        found = eventually(lambda: re.search(r"listens on (\S+)", self.said), _STARTS_WITHIN_S)
        assert found
        return found[1]

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.address + path, headers=KNOWN, timeout=5, trust_env=False, verify=False, **more)

    def post(self, message: str) -> httpx.Response:
        """Send an error as a cron job does, from this machine and without a token."""
        address = self.address + "/api/debug/errors"
        return httpx.post(
            address, json={"message": message, "service": "cron"}, timeout=20, trust_env=False, verify=False
        )

    def errors(self) -> list[str]:
        """The messages of all stored errors."""
        return sorted(error["message"] for error in self.get("/api/debug/errors?limit=200").json()["errors"])

    def until_ready(self) -> None:
        eventually(lambda: self.get("/readyz").status_code == 200, _STARTS_WITHIN_S)

    def until_said(self, text: str) -> None:
        eventually(lambda: text in self.said, _STARTS_WITHIN_S)

    def wait(self) -> int:
        return self.process.wait(_STARTS_WITHIN_S)


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Server]:
    server = Server(folder, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN) as one:
        yield one


def test_it_makes_its_database_and_says_where_everything_is(server: Server, tmp_path: Path) -> None:
    """On an empty folder, without a setting but the token."""
    server.until_ready()

    health = server.get("/api/debug/health").json()

    assert health["services"]["database"] == "connected"
    assert f"SQLite {tmp_path}/tocsin.db" in server.said
    assert "log in within 10 minutes: " in server.said
    assert "alerts" in server.said
    assert TOKEN not in server.said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly_when_asked(server: Server, how: signal.Signals) -> None:
    """With code 0, within ten seconds, also while somebody keeps a connection."""
    server.until_ready()
    with httpx.Client(base_url=server.address, headers=KNOWN, trust_env=False) as keeping:
        keeping.get("/livez")
        server.process.send_signal(how)
        code = server.process.wait(10)

    assert code == 0
    assert "Traceback" not in server.said


def test_the_log_in_address_that_it_prints_works_once(server: Server) -> None:
    """Each start prints a new one."""
    found = eventually(lambda: re.search(r"log in within 10 minutes: (\S+)", server.said), _STARTS_WITHIN_S)
    assert found
    address = found[1]
    assert address.startswith(server.address + "/admin/debug/login?code=")

    with httpx.Client(trust_env=False) as browser:
        form = browser.get(address)
        code = re.findall(r'name="code" value="([^"]+)"', form.text)
        answer = browser.post(address.partition("?")[0], data={"code": code[0]})
        page = browser.get(server.address + answer.headers["location"])

    assert page.status_code == 200
    assert httpx.post(address.partition("?")[0], data={"code": code[0]}, trust_env=False).status_code == 401


def test_without_a_token_it_makes_one_and_shows_it_once(tmp_path: Path) -> None:
    """The second start knows it, but cannot show it any more."""
    with serving(tmp_path) as first:
        first.until_ready()
        found = eventually(lambda: re.search(r"Authorization: Bearer (\S+)", first.said))
        first.process.terminate()
        first.wait()
    with serving(tmp_path) as second:
        second.until_ready()
        second.until_said("log in within")
        assert found
        header = {"authorization": f"Bearer {found[1]}"}
        answer = httpx.get(f"{second.address}/api/debug/errors", headers=header, trust_env=False)

        assert "Bearer" not in second.said

    assert answer.status_code == 200
    assert found[1].encode() not in (tmp_path / "tocsin.db").read_bytes()


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        serving(tmp_path, port=taken.getsockname()[1], TOCSIN_TOKEN=TOKEN) as server,
    ):
        assert server.wait() == 1
        lines = server.said.splitlines()

    assert len(lines) == 1
    assert "in use" in lines[0]
    assert "--port" in lines[0]


def test_a_public_address_needs_a_token(tmp_path: Path) -> None:
    """Otherwise anybody who reads its output could be anybody."""
    with serving(tmp_path, host="0.0.0.0") as server:
        assert server.wait() == 2
        assert "TOCSIN_TOKEN" in server.said

    with serving(tmp_path, host="0.0.0.0", TOCSIN_TOKEN=TOKEN) as server:
        assert "127.0.0.1" in server.address
        server.until_ready()


def test_it_waits_for_a_database_that_is_away(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """It lives, is not ready, answers 503, and is all there when the database comes."""
    url = postgres_server.url
    postgres_server.stop()
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN, TOCSIN_DATABASE_URL=url) as server:
        live = server.get("/livez").status_code
        ready = server.get("/readyz").status_code
        health = server.get("/api/debug/health")
        server.until_said("waiting for the database")

        postgres_server.start()

        server.until_ready()
        eventually(lambda: server.get("/api/debug/health").json()["status"] == "ok")
        server.process.terminate()
        code = server.wait()

    assert (live, ready, health.status_code) == (200, 503, 503)
    assert health.json()["services"]["database"] == "error"
    assert code == 0
    assert "log in within" in server.said


def test_errors_are_taken_while_the_database_is_away(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """From the first moment on: they wait in the spool, also for the next server, and are stored once."""
    url = postgres_server.url
    postgres_server.stop()
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN, TOCSIN_DATABASE_URL=url) as first:
        taken = [first.post("first").status_code]
        live, ready = first.get("/livez").status_code, first.get("/readyz").status_code
        first.process.terminate()
        assert first.wait() == 0
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN, TOCSIN_DATABASE_URL=url) as second:
        taken.append(second.post("second").status_code)
        postgres_server.start()
        second.until_ready()
        eventually(lambda: second.errors() == ["first", "second"])

    assert (live, ready, taken) == (200, 503, [200, 200])


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.gate)])
def test_what_was_answered_survives_a_kill(tmp_path: Path, kills: int) -> None:
    """Wherever it was: in the spool, on its way into the database, or there."""
    sent: list[str] = []
    for kill in range(kills):
        with serving(tmp_path, TOCSIN_TOKEN=TOKEN) as server:
            for number in range(9):
                assert server.post(f"{kill}.{number}").status_code == 200
                sent.append(f"{kill}.{number}")
            server.process.kill()
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN) as server:
        server.until_ready()
        eventually(lambda: len(server.errors()) >= len(sent))
        eventually(lambda: not [path for path in (tmp_path / "spool").glob("*.seg") if path.stat().st_size > 1000])

        assert server.errors() == sorted(sent)


def test_services_of_its_machine_are_shown_as_they_are(server: Server, tmp_path: Path) -> None:
    """Also one that has never had anything to store, and so no connection to the database."""
    program = f"""
import time
from pathlib import Path
from tocsin.exporter.life import State
from tocsin.exporter.spool import Spool
spool = Spool(Path({str(tmp_path / "spool")!r}), 2**30, {{"resource": {{"service.name": "shop"}}}})
spool.life.set_state(State.ALIVE)
spool.life.set_active(3)
input()
spool.life.note_stopping(time.time_ns())
input()
spool.close(everything_stored=True)
"""

    def shown() -> list[tuple[Any, ...]]:
        rows = server.get("/api/debug/instances").json()["instances"]
        return [(row["service"], row["active_requests"], row["is_shutting_down"], row["ended_how"]) for row in rows]

    server.until_ready()
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True, bufsize=1) as shop:
        assert shop.stdin is not None
        eventually(lambda: shown() == [("shop", 3, False, None)])
        shop.stdin.write("stop\n")
        eventually(lambda: shown() == [("shop", 3, True, None)])
        shop.stdin.write("end\n")
        eventually(lambda: shown() == [("shop", 3, False, "ended")])


def test_nothing_is_left_in_the_spool_by_a_clean_end(server: Server, tmp_path: Path) -> None:
    server.until_ready()
    assert server.post("boom").status_code == 200
    server.process.terminate()

    assert server.wait() == 0
    assert list((tmp_path / "spool").iterdir()) == []
    assert "Traceback" not in server.said


def test_a_spool_folder_that_cannot_be_used_stops_only_the_door(tmp_path: Path) -> None:
    """It says so; reading, acting and alerts go on."""
    (tmp_path / "file").write_text("no folder")
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN, TOCSIN_SPOOL_DIR=f"{tmp_path}/file/spool") as server:
        server.until_ready()
        answer = server.post("boom")
        health = server.get("/api/debug/health").status_code

        assert "TOCSIN_SPOOL_DIR" in server.said
        assert "Traceback" not in server.said
    assert (answer.status_code, health) == (503, 200)
    assert answer.headers["retry-after"]


def test_it_stops_while_the_database_is_away(tmp_path: Path, postgres_server: PostgresServer) -> None:
    postgres_server.stop()
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN, TOCSIN_DATABASE_URL=postgres_server.url) as server:
        server.until_said("waiting for the database")
        server.process.terminate()

        assert server.process.wait(10) == 0


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    url = "postgresql://anna:hush-hush@127.0.0.1:1/shop?sslmode=disable"
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN, TOCSIN_DATABASE_URL=url) as server:
        server.until_said("waiting for the database")

        assert "PostgreSQL 127.0.0.1:1/shop" in server.said
        assert "hush" not in server.said


def test_what_is_no_http_is_refused(server: Server) -> None:
    """And nothing of it is a traceback."""
    port = int(server.address.rsplit(":", 1)[1])
    for junk in (b"\x16\x03\x01\x00\xff", b"GET / HTTP/1.1\r\nHost: " + b"x" * 100_000 + b"\r\n\r\n", b"\r\n\r\n\x00"):
        with socket.create_connection(("127.0.0.1", port), 5) as line:
            line.sendall(junk)
            line.shutdown(socket.SHUT_WR)
            answer = line.recv(65536)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 303 "))
    server.until_ready()

    assert "Traceback" not in server.said
