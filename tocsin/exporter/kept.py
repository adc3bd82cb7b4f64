"""
Whether somebody keeps the rows of the processes that have a spool in a folder: a server that reads there.

It says so by a file in that folder, as old as the server's last sign of life, so that a service of which the
row is kept need not open the database for it. The file names the processes, for the next server: one that
ended in order while there was none has left nothing else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

FRESH_S: Final = 5.0
"""How old the last sign of life of a server may be; it gives one about twice a second."""

_NAME: Final = "rows.kept"
_MOST_BYTES: Final = 2**20


def is_kept(folder: Path) -> bool:
    """Whether a server keeps the rows just now."""
    try:
        age_s = time.time() - (folder / _NAME).stat().st_mtime
    except OSError:
        return False
    return abs(age_s) < FRESH_S  # a clock that was set back makes it new for ever


def touch(folder: Path) -> None:
    """Give a sign of life; nothing happens before there is anything that is kept."""
    with suppress(OSError):
        os.utime(folder / _NAME)


def leave(folder: Path) -> None:
    """Say that the rows are not kept any more; which they were stays known, where there were any."""
    with suppress(OSError):
        if read(folder):
            os.utime(folder / _NAME, (0, 0))
        else:
            (folder / _NAME).unlink()


def write(folder: Path, instance_ids: Mapping[str, str]) -> None:
    """Say whose rows are kept: ids of instances by the stems of their files. Where it cannot, nobody knows of it."""
    with suppress(OSError):
        new = folder / f"{_NAME}.{os.getpid()}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            file.write(json.dumps(instance_ids).encode())
        new.rename(folder / _NAME)


def read(folder: Path) -> dict[str, str]:
    """Whose rows were kept last; none where that cannot be read."""
    try:
        with (folder / _NAME).open("rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {stem: one for stem, one in found.items() if isinstance(one, str)}
