"""Users' programs under `tocsin run`, as real processes, and the rows that they leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

from sqlalchemy import Connection, select

from tests.waiting import eventually
from tocsin.exporter.drain import adopting
from tocsin.settings import Settings
from tocsin.store import open_store, schema

ROOT = Path(__file__).parents[1]

_ENDS_S = 20


def drain_rest(folder: Path, database_url: str) -> None:
    """Store what dead processes left in a test's spool folder, as the next process does."""
    settings = Settings(database_url=database_url, spool_dir=str(folder / "spool"))
    with adopting(settings):
        eventually(lambda: not list((folder / "spool").glob("*.seg")), 20)


def rows_of(database_url: str) -> list[Any]:
    """Every row of ``error_logs``, oldest first, its columns as attributes."""

    def work(connection: Connection) -> list[Any]:
        found = connection.execute(select(schema.error_logs).order_by(schema.error_logs.c.id))
        return [SimpleNamespace(**row) for row in found.mappings()]

    store = open_store(database_url)
    try:
        return store.read_now(work)
    finally:
        store.close_now()


def errors_in(database_url: str) -> int:
    """How many errors are stored, those that were only counted too."""
    return sum(row.count for row in rows_of(database_url))


def environment_of(folder: Path, database_url: str, **environ: str) -> dict[str, str]:
    """An environment in which nothing of this machine's tocsin or OpenTelemetry is set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))}
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return kept | {
        "HOME": str(folder),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "TOCSIN_DATABASE_URL": database_url,
        "TOCSIN_SPOOL_DIR": str(folder / "spool"),
        **environ,
    }


def run_program(
    folder: Path,
    code: str,
    database_url: str,
    *,
    command: tuple[str, ...] = ("tocsin", "run", "--"),
    is_drained: bool = True,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end; what it could not store any more within its second is stored after it."""
    (folder / "program.py").write_text(code)
    prefix = [sys.executable, "-m", *command] if command[:1] == ("tocsin",) else list(command)
    done = run_command(folder, [*prefix, sys.executable, "program.py"], database_url, **environ)
    if is_drained:
        drain_rest(folder, database_url)
    return done


def run_command(
    folder: Path, command: Sequence[str], database_url: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run any command to its end."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment_of(folder, database_url, **environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Service:
    """A program that serves HTTP by uvicorn under `tocsin run`; `with` waits until it answers, and ends it."""

    def __init__(self, folder: Path, database_url: str, *argv: str, **environ: str) -> None:
        self.folder = folder
        self.database_url = database_url
        self._output = folder / "output.txt"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tocsin", "run", *argv],
                cwd=folder,
                env=environment_of(folder, database_url, **environ),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.address = ""

    def __enter__(self) -> Service:
        def address() -> str | None:
            found = re.search(r"running on (http://[\d.]+:\d+)", self.said())
            assert self.process.poll() is None, self.said()
            return found[1] if found and "startup complete" in self.said() else None

        try:
            self.address = eventually(address, 30) or ""
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def said(self) -> str:
        """What it wrote so far."""
        return self._output.read_text("utf-8", "replace")

    def get(self, path: str, *, trace_id: str | None = None, **headers: str) -> int:
        """The status that it answers a request with."""
        request = urllib.request.Request(self.address + path)
        if trace_id is not None:
            request.add_header("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code

    def wait_for(self, errors: int) -> None:
        """Wait until so many errors are stored."""
        try:
            eventually(lambda: errors_in(self.database_url) >= errors, 20)
        except AssertionError:
            stored = [(row.exception_type, row.message, row.count) for row in rows_of(self.database_url)]
            raise AssertionError(f"{stored}\n{self.said()}") from None

    def stop(self) -> int:
        """End it as Ctrl-C does; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(_ENDS_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
        drain_rest(self.folder, self.database_url)
        return code
