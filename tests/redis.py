"""A real Redis server for tests, on a free port; nothing of it is kept."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.postgres import free_port, missing_part
from tests.waiting import eventually

_START_S = 20


@contextmanager
def redis_server() -> Iterator[str]:
    """A server while it lasts: its address."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        missing_part("Redis (Debian's redis-server)")
    assert program is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tocsin-redis-") as folder:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(lambda: _answers(port), _START_S)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with redis.Redis(port=port) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
