"""The real PM2, from npm: a daemon of its own for a test, and the programs that it keeps alive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.npm import installed
from tests.postgres import missing_part

PACKAGES = {"pm2": "6.0.14"}
_COMMAND_S = 60


class Pm2:
    """One daemon with its folder; `app` is what PM2 itself says of a program."""

    def __init__(self, program: Path, home: Path) -> None:
        self.program = program
        self.home = home

    def do(self, *words: str, cwd: Path | None = None) -> str:
        """Run a command of PM2; what it printed."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        done = subprocess.run(
            [str(self.program), "--no-color", *words],
            env=kept | {"HOME": str(self.home), "PM2_HOME": str(self.home), "PM2_DISCRETE_MODE": "true"},
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, folder: Path, app: Mapping[str, Any]) -> None:
        """Start one program, as an ecosystem file tells it."""
        path = folder / "ecosystem.config.json"
        path.write_text(json.dumps({"apps": [app]}))
        self.do("start", str(path), cwd=folder)

    def app(self, name: str) -> Any:
        """What `pm2 jlist` says of a program: pid, and under ``pm2_env`` status and restart_time."""
        (found,) = [one for one in json.loads(self.do("jlist")) if one["name"] == name]
        return found


@contextmanager
def pm2_daemon() -> Iterator[Pm2]:
    """A daemon; what it runs is gone with it."""
    if not shutil.which("ps"):
        missing_part("ps, by which PM2 finds a program's children")
    program = installed(PACKAGES) / ".bin" / "pm2"
    # Not under pytest's folder: the address of a socket in it may have 107 characters.
    home = Path(tempfile.mkdtemp(prefix="pm2-"))
    daemon = Pm2(program, home)
    try:
        yield daemon
    finally:
        daemon.do("kill")
        shutil.rmtree(home, ignore_errors=True)
