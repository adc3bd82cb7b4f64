"""A server, or a worker, and its processes under `tocsin run`, or with tocsin in its own code, as real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx

from tests.postgres import free_port
from tests.processes import drain_rest, environment_of, rows_of
from tests.waiting import eventually

_STARTS_S = 40
_ENDS_S = 20


def told(database_url: str) -> Counter[tuple[Any, ...]]:
    """How often which error is stored: its type or text, mechanism and severity."""
    found: Counter[tuple[Any, ...]] = Counter()
    for row in rows_of(database_url):
        found[row.exception_type or row.message, row.mechanism, row.severity] += row.count
    return found


class Program:
    """
    A command that runs until it is ended; `with` waits until it is ready, and ends it.

    Args:
        run: what starts it; `tocsin run` unless a test says otherwise.
    """

    def __init__(
        self,
        folder: Path,
        database_url: str,
        command: str,
        *,
        run: tuple[str, ...] = ("-m", "tocsin", "run", "--"),
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.database_url = database_url
        self._output = folder / "output.txt"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *run, *command.split()],
                cwd=folder,
                env=environment_of(folder, database_url, **environ),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            eventually(self.is_ready, _STARTS_S)
        except BaseException:
            self._kill()
            raise AssertionError(self.said()) from None
        return self

    def __exit__(self, *args: object) -> None:
        self.end()

    def said(self) -> str:
        return self._output.read_text("utf-8", "replace")

    def end(self, how: int = signal.SIGTERM) -> int:
        """Its exit code after a signal; then everything is stored."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(_ENDS_S)
            finally:
                self._kill()
        drain_rest(self.folder, self.database_url)
        return self.process.returncode

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_ENDS_S)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.said()
        return True


class Server(Program):
    """A command that serves HTTP; ``PORT`` in it stands for a free port."""

    def __init__(self, folder: Path, database_url: str, command: str, **options: Any) -> None:
        self.address = f"http://127.0.0.1:{free_port()}"
        super().__init__(folder, database_url, command.replace("PORT", self.address.rpartition(":")[2]), **options)
        self._client = httpx.Client(base_url=self.address, timeout=20, trust_env=False)

    def __exit__(self, *args: object) -> None:
        self._client.close()
        super().__exit__(*args)

    def get(self, path: str, **headers: str) -> int:
        """The status that it answers with; 0 where the connection broke in the middle."""
        try:
            return self._client.get(path, headers={"Connection": "close", **headers}).status_code
        except httpx.TransportError:
            return 0

    def pids(self, count: int) -> list[int]:
        """The processes that answer, which are so many."""
        found: set[int] = set()

        def are_all() -> bool:
            with suppress(httpx.TransportError):
                answer = self._client.get("/pid", headers={"Connection": "close"})
                found.update(int(answer.text) for _ in range(answer.status_code == 200))
            return len(found) >= count

        eventually(are_all, _STARTS_S)
        return sorted(found)

    def fail_in_each(self, pids: list[int]) -> None:
        """An error in each of these processes."""
        missing = set(pids)

        def are_all() -> bool:
            self.get("/orders/7")
            told = {int(pid) for row in rows_of(self.database_url) for pid in re.findall(r"in (\d+)$", row.message)}
            return missing <= told

        eventually(are_all, _STARTS_S)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.said()
        with suppress(httpx.TransportError):
            return self._client.get("/pid").status_code == 200
        return False
