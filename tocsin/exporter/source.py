"""Lines of source files, by names that anybody may have made up."""

from __future__ import annotations

import linecache
import stat
from pathlib import Path
from typing import Final

from tocsin.contained import pass_on

_LARGEST_FILE: Final = 4 * 2**20


def is_readable(file: str) -> bool:
    """
    Whether to ask for lines: what is no file of a bearable size may never end, or wait for somebody to write.

    Raises:
        ValueError: no file can have that name.
    """
    if file in linecache.cache:
        return True
    try:
        found = Path(file).stat()
    except OSError:  # `linecache` looks for it along the path
        return True
    return stat.S_ISREG(found.st_mode) and found.st_size <= _LARGEST_FILE


def lines_of(file: str) -> list[str]:
    """The lines of a file; none where it cannot be read."""
    try:
        return linecache.getlines(file) if is_readable(file) else []
    except BaseException as problem:  # of a loader, which may exit, or of a coding that nobody knows
        pass_on(problem)
        return []
