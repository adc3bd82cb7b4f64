"""The demo's two processes: started quietly, heard line by line, and ended in good order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tocsin.terminal import safe

_STOP_WITHIN_S = 8.0
_QUIET_S = 0.15
_LAST = 30


class Child:
    """
    A Python process in a session of its own: Ctrl-C reaches only the demo, which then ends its children in order.

    Args:
        hear: called with every line of its output, from a thread.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environ: Mapping[str, str],
        hear: Callable[[str], None],
    ) -> None:
        self.name = name
        self._lines: list[str] = []
        self._heard_at = time.monotonic()
        self._heard = threading.Condition()
        self._hear = hear
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name=name, daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for raw in stream:
            line = raw.rstrip("\n")
            self._hear(line)
            with self._heard:
                self._lines.append(line)
                self._heard_at = time.monotonic()
                self._heard.notify_all()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def last_words(self) -> str:
        """What it said last, for people who want to know why it does not do what it should."""
        with self._heard:
            return "\n".join(f"  {safe(line)}" for line in self._lines[-_LAST:])

    def count(self, is_it: Callable[[str], bool]) -> int:
        """How many of its lines so far are of a kind."""
        with self._heard:
            return sum(map(is_it, self._lines))

    def wait_for(self, is_it: Callable[[str], bool], *, times: int, timeout_s: float) -> bool:
        """Wait until so many lines of a kind were said, and what follows on them; whether they were."""
        deadline = time.monotonic() + timeout_s
        with self._heard:
            while sum(map(is_it, self._lines)) < times:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self.is_alive:
                    return False
                self._heard.wait(min(left_s, 0.5))
            while (quiet_s := time.monotonic() - self._heard_at) < _QUIET_S and time.monotonic() < deadline:
                self._heard.wait(_QUIET_S - quiet_s)
        return True

    def ask_to_stop(self) -> None:
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it, gently for a while, and take in what it still says."""
        self.ask_to_stop()
        try:
            self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(2)
