"""
Who starts and stops services on this machine, and whether it leaves them the time to stop.

PM2, systemd and containers kill what has not ended some seconds after they asked for it; each has its own name
for that time, and PM2's default (1.6 s) is shorter than a request.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARGIN_S = 5.0
"""What a stop takes beside the requests under way: callbacks, the last errors, the interpreter's end."""

_PM2_DEFAULT_S = 1.6
_COMMAND_S = 5
_IN_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))


@dataclass(frozen=True, slots=True)
class Kept:
    """A program of tocsin's that somebody keeps alive, and how long it has to stop."""

    by: str  #              PM2 or systemd
    name: str  #            as that one calls it
    stop_s: float
    setting: str  #         what the time is called there, with a value that is long enough
    needs_s: float
    memory_limit: bool = False  # PM2 restarts it by memory, of which it sees tocsin's alone

    @property
    def is_long_enough(self) -> bool:
        return self.stop_s >= self.needs_s


def kept_here(shutdown_timeout_s: float) -> list[Kept]:
    """What PM2 and systemd keep alive on this machine; nothing of what this user may not see."""
    units = _systemctl()
    return [*in_pm2(_pm2_apps(), shutdown_timeout_s), *in_systemd(units, shutdown_timeout_s)]


def is_container() -> bool:
    """Whether this is the inside of a container, from where its stop time cannot be seen."""
    return any(path.exists() for path in _IN_CONTAINER)


def needed_s(words: Sequence[str], shutdown_timeout_s: float) -> float | None:
    """How long a command needs to stop; None where it is none of tocsin's that stays."""
    at = next((at for at, word in enumerate(words) if word.rpartition("/")[2] == "tocsin"), None)
    command = next((word for word in words[at + 1 :] if not word.startswith("-")), "") if at is not None else ""
    return shutdown_timeout_s + MARGIN_S if command in ("run", "serve") else None


# PM2.


def in_pm2(apps: Sequence[Any], shutdown_timeout_s: float) -> Iterator[Kept]:
    """
    The programs of tocsin's among PM2's.

    Args:
        apps: what ``pm2 jlist`` prints, or PM2 has saved; not trusted.
    """
    for app in apps:
        with suppress(AttributeError, KeyError, TypeError, ValueError):  # of another version, or of somebody else
            found = app.get("pm2_env", app)
            said = found.get("args") or []
            words = [found["pm_exec_path"], *(said.split() if isinstance(said, str) else said)]
            needs_s = needed_s([str(word) for word in words], shutdown_timeout_s)
            if needs_s is None:
                continue
            given = found.get("kill_timeout")
            yield Kept(
                by="PM2",
                name=str(found["name"]),
                stop_s=_PM2_DEFAULT_S if given is None else float(given) / 1000,
                setting=f"kill_timeout: {needs_s * 1000:.0f}",
                needs_s=needs_s,
                memory_limit=bool(found.get("max_memory_restart")),
            )


def _pm2_apps() -> list[Any]:
    """As the daemon says, where it runs; else what it has saved. Asked while it is away, `pm2` would start one."""
    home = Path(os.environ.get("PM2_HOME") or Path.home() / ".pm2")
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        os.kill(int((home / "pm2.pid").read_text()), 0)
        done = subprocess.run(["pm2", "jlist"], capture_output=True, timeout=_COMMAND_S, check=True)
        return _list(done.stdout[done.stdout.find(b"[{") :])
    with suppress(OSError, ValueError):
        return _list((home / "dump.pm2").read_bytes())
    return []


def _list(text: bytes) -> list[Any]:
    found = json.loads(text)
    return found if isinstance(found, list) else []


# systemd.


def in_systemd(text: str, shutdown_timeout_s: float) -> Iterator[Kept]:
    """
    The programs of tocsin's among systemd's units.

    Args:
        text: of ``systemctl show --property=Id,ExecStart,TimeoutStopUSec '*.service'``.
    """
    for block in text.split("\n\n"):
        said = dict(line.partition("=")[::2] for line in block.splitlines())
        argv = re.search(r"argv\[\]=(.*?) ;", said.get("ExecStart", ""))
        needs_s = needed_s(argv[1].split(), shutdown_timeout_s) if argv else None
        stop_s = seconds(said.get("TimeoutStopUSec", ""))
        if needs_s is not None and stop_s is not None:
            setting = f"TimeoutStopSec={needs_s:.0f}"
            yield Kept(by="systemd", name=said.get("Id", "?"), stop_s=stop_s, setting=setting, needs_s=needs_s)


_UNITS_S = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


def seconds(span: str) -> float | None:
    """A span as systemd prints it, such as ``1min 30s``; None for what is none."""
    if span == "infinity":
        return float("inf")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|min|s|ms|us)(?=\s|\Z)", span)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts) if parts else None


def _systemctl() -> str:
    if not Path("/run/systemd/system").exists():
        return ""
    command = ("systemctl", "show", "--property=Id,ExecStart,TimeoutStopUSec", "*.service")
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True).stdout
    return ""
