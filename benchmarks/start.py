"""
How much later a service starts under `tocsin run`, beside the same one without it, in turns.

    python -m benchmarks.start

Two programs: one that says a line as its first act, and a uvicorn application, which is ready when it says
that it is running. Each figure is the median of the rounds, from the start of the command.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

ROUNDS: Final = 15
AIM_MS: Final = 150

APP: Final = """
print("ready", flush=True)
"""
SERVICE: Final = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
"""

PROGRAMS: Final = {
    "python app.py, first line": ([sys.executable, "app.py"], r"ready"),
    "uvicorn, running": ([sys.executable, "-m", "uvicorn", "service:app", "--port", "0"], r"Uvicorn running on"),
}
RUN: Final = [str(Path(sys.executable).with_name("tocsin")), "run", "--"]


def main() -> int:
    """Print the table; 1 where the aim is missed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "app.py").write_text(APP)
        (folder / "service.py").write_text(SERVICE)
        print(f"median of {ROUNDS} rounds in turn, Python {sys.version.split()[0]}, {os.cpu_count()} processors; ms")
        print(f"{'':28} {'without':>8} {'tocsin run':>10} {'later':>7}")
        worst = 0.0
        for title, (command, ready) in PROGRAMS.items():
            for way in (command, [*RUN, *command]):  # bytecode is written, files are read once
                _ready_ms(way, ready, folder)
            pairs = [[_ready_ms(way, ready, folder) for way in (command, [*RUN, *command])] for _ in range(ROUNDS)]
            without, with_it = (statistics.median(times) for times in zip(*pairs, strict=True))
            worst = max(worst, with_it - without)
            print(f"{title:28} {without:8.0f} {with_it:10.0f} {with_it - without:+7.0f}")
        print(f"aim: at most {AIM_MS} ms later")
    return int(worst > AIM_MS)


def _ready_ms(command: list[str], ready: str, folder: Path) -> float:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_", "PYTHON"))}
    own = {
        "HOME": str(folder),
        "TOCSIN_SPOOL_DIR": f"{folder}/spool",
        "TOCSIN_DATABASE_URL": f"sqlite:///{folder}/t.db",
        "PYTHONPYCACHEPREFIX": f"{folder}/cache",  # bytecode of its own: that of a checkout may be old
    }
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = ""
        while not re.search(ready, said):
            line = process.stdout.readline()
            assert line, f"{command} ended before it was ready:\n{said}"
            said += line
        took_ms = (time.perf_counter() - began) * 1000
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    return took_ms


if __name__ == "__main__":
    sys.exit(main())
