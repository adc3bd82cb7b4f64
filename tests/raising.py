"""A service of a few lines that raises what it is told to, for tests and benchmarks of the whole way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.processes import environment_of

_PROGRAM = """
import sys, time
import tocsin

tocsin.init(service="shop")
print("ready", flush=True)
for line in sys.stdin:
    kind, _, message = line.rstrip("\\n").partition(" ")
    error = type(kind, (RuntimeError,), {})
    started = time.monotonic()
    try:
        raise error(message)
    except RuntimeError as raised:
        tocsin.track_error(raised, "high")
        print(started, time.monotonic(), flush=True)
"""


class RaisingService:
    """`raise_` makes it raise one error; `with` starts and ends it."""

    def __init__(self, folder: Path, database_url: str, **environ: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "raising.py").write_text(_PROGRAM)
        self._said = (folder / "said.txt").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "raising.py"],
            cwd=folder,
            env=environment_of(folder, database_url, **environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def __enter__(self) -> RaisingService:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *args: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.stdout.close()
            self._said.close()

    def raise_(self, kind: str, message: str = "it broke") -> tuple[float, float]:
        """When it raised, and when its own code went on; monotonic seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{kind} {message}\n")
        self.process.stdin.flush()
        started, went_on = self.process.stdout.readline().split()
        return float(started), float(went_on)
