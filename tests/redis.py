"""A real Redis server for tests, on a free port; nothing of it is kept."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.postgres import free_port, missing_part
from tests.waiting import eventually

_START_S = 20


class RedisServer:
    """A server that can be stopped, hang, and be started again where it was; `with` starts and ends it."""

    def __init__(self) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            missing_part("Redis (Debian's redis-server)")
        assert program is not None
        self._program = program
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}"

    def __enter__(self) -> RedisServer:
        self._folder = tempfile.TemporaryDirectory(prefix="tocsin-redis-")
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--bind", "127.0.0.1", "--port", str(self._port), "--save", "", "--appendonly", "no"]
        with (Path(self._folder.name) / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *options, "--dir", self._folder.name], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            eventually(self._answers, _START_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Let it take connections, and answer none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with redis.Redis(port=self._port) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


@contextmanager
def redis_server() -> Iterator[str]:
    """A server while it lasts: its address."""
    with RedisServer() as server:
        yield server.url
