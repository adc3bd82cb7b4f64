"""Servers with workers: each worker is an instance of its own, a killed one is told once, a reload is nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.interop.servers import Server, told
from tests.processes import rows_of
from tests.waiting import eventually

FLASK = "tests.interop.flask_shop:app"
DJANGO = "tests.interop.django_shop:application"
PLAIN = "tests.interop.plain_shop:asgi_application"
ERROR_IN = "no order in "


def check_workers(server: Server, *, is_killed_told: bool) -> None:
    """
    An error in each of two workers, then one is killed and replaced, then an error right before the end.

    Args:
        is_killed_told: whether the death of the worker is an error of its own.
    """
    first = server.pids(2)
    server.fail_in_each(first)
    os.kill(first[0], signal.SIGKILL)
    second = eventually(lambda: [pid for pid in server.pids(2) if pid != first[0]], 20)
    assert second
    server.get("/orders/8")

    assert server.end() in (0, -signal.SIGTERM), server.said()

    rows = rows_of(server.database_url)
    by_pid: dict[str, set[str]] = {}
    for row in rows:
        if row.message.startswith(ERROR_IN):
            by_pid.setdefault(row.message.removeprefix(ERROR_IN), set()).add(row.instance_id)
    assert all(len(instances) == 1 for instances in by_pid.values()), by_pid
    assert len({next(iter(instances)) for instances in by_pid.values()}) == len(by_pid) >= 2
    others = [row for row in rows if not row.message.startswith(ERROR_IN)]
    assert len(others) == is_killed_told, [(row.mechanism, row.message) for row in others]
    assert all(row.severity == "critical" for row in others)


def test_workers_of_gunicorn_that_fork(sqlite_url: str, tmp_path: Path) -> None:
    with Server(tmp_path, sqlite_url, f"gunicorn -w 2 -b 127.0.0.1:PORT {FLASK}") as server:
        check_workers(server, is_killed_told=True)


@pytest.mark.gate
@pytest.mark.parametrize(
    "command",
    [
        f"gunicorn -w 2 --threads 2 -b 127.0.0.1:PORT {DJANGO}",
        f"gunicorn -w 2 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:PORT {PLAIN}",
        f"gunicorn -w 2 --preload -k uvicorn_worker.UvicornWorker -b 127.0.0.1:PORT {PLAIN}",
        f"uvicorn --workers 2 --port PORT {PLAIN}",
    ],
)
def test_workers_of_other_kinds(command: str, sqlite_url: str, tmp_path: Path) -> None:
    with Server(tmp_path, sqlite_url, command) as server:
        check_workers(server, is_killed_told=True)


@pytest.mark.gate
def test_a_reload_of_uvicorn_is_nothing(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from tests.interop.plain_shop import asgi_application as app\n")
    command = f"uvicorn --reload --reload-dir {tmp_path} --port PORT shop:app"
    with Server(tmp_path, sqlite_url, command) as server:
        first = server.pids(1)
        server.fail_in_each(first)
        (tmp_path / "shop.py").write_text("from tests.interop.plain_shop import asgi_application as app  # again\n")
        second = eventually(lambda: [pid for pid in server.pids(1) if pid not in first], 30)
        server.fail_in_each(second)

        server.end()

        assert {row.exception_type for row in rows_of(sqlite_url)} == {"LookupError"}, server.said()
        assert len({row.instance_id for row in rows_of(sqlite_url)}) == 2


@pytest.mark.gate
def test_a_worker_that_stands_still_is_one_error(sqlite_url: str, tmp_path: Path) -> None:
    """gunicorn ends it after its timeout; where it stood still is in the stack."""
    with Server(tmp_path, sqlite_url, f"gunicorn --timeout 1 -b 127.0.0.1:PORT {FLASK}") as server:
        server.get("/slow")
        assert server.get("/pid") == 200

        server.end()

        assert told(sqlite_url) == {("SystemExit", "wsgi", "critical"): 1}, server.said()
        (row,) = rows_of(sqlite_url)
        assert row.message == "gunicorn ended this worker, which stood still for 1 s"
        assert (row.context["http.route"], "time.sleep(3)" in row.stack) == ("/slow", True)
