"""
Processes that are spared the imports: forked from one that has done nothing but them.

Each is real, and alone with what it does; only what a start costs (most of a second) is paid once for all.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, NoReturn
from unittest import mock

_ROOT = Path(__file__).parents[1]
_IMPORTED = ["tocsin.serve", "alembic.command", "anyio._backends._asyncio", "asyncpg"]


def context() -> multiprocessing.context.ForkServerContext:
    """As `multiprocessing.get_context` gives it, with the process to fork from at work."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_IMPORTED)
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(_ROOT)}):
        forkserver.ensure_running()
    return found


class Forked:
    """
    A process that calls a function, in the words of `subprocess.Popen`.

    Args:
        output: a file for what it writes to stdout and stderr.
    """

    def __init__(
        self, function: Callable[..., int], *arguments: Any, folder: Path, output: Path, env: Mapping[str, str]
    ) -> None:
        self._process = context().Process(target=_begin, args=(function, arguments, folder, output, dict(env)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float | None = None) -> int:
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            raise TimeoutExpired("forked", timeout_s or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _begin(
    function: Callable[..., int], arguments: tuple[Any, ...], folder: Path, output: Path, environ: dict[str, str]
) -> NoReturn:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    with output.open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.exit(function(*arguments))


def begin_serving(host: str, port: int) -> int:
    """The server as a process, as `tocsin serve` has it."""
    from tocsin.serve import serve
    from tocsin.settings import Settings

    return serve(Settings.load(), host=host, port=port)
