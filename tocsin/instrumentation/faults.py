"""
Where this process is when a fatal signal comes: the interpreter writes its stacks to a file of the spool.

`faulthandler` of the standard library does that, from a signal handler and with nothing of Python. Whoever
has enabled it for a file of their own keeps it, before us or after.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import weakref

from tocsin.contained import contained
from tocsin.exporter.life import State
from tocsin.exporter.spool import Spool, fault_path


class _File:
    """An open file, closed with the last who has a use for it: which is faulthandler alone."""

    __slots__ = ("__weakref__", "_fd", "stem")

    def __init__(self, spool: Spool) -> None:
        self.stem = spool.stem
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(fault_path(spool.folder, spool.stem), flags, 0o600)

    def fileno(self) -> int:
        return self._fd

    def flush(self) -> None:
        """There is nothing that waits."""

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


# Dead as soon as somebody else enables or disables faulthandler: it has no word for who it writes for.
_ours: weakref.ref[_File] | None = None


def watch(spool: Spool) -> None:
    """Have stacks written beside the segments of a process whose end means something; again is harmless."""
    with contained("opening a file for fatal signals"):
        if sys.implementation.name != "cpython" or spool.life.read().state != State.ALIVE:
            return
        ours = _ours() if _ours is not None else None
        if ours is None and (_ours is not None or faulthandler.is_enabled()):
            return
        if ours is None or ours.stem != spool.stem:
            _enable(_File(spool))


def uninstall() -> None:
    """Let go of it, where it is still ours."""
    global _ours
    with contained("letting go of fatal signals"):
        if _ours is not None and _ours() is not None:
            faulthandler.disable()
        _ours = None


begin_anew = uninstall
"""In a forked process: the file is its parent's, and so would be a crash."""


def _enable(file: _File) -> None:
    global _ours
    faulthandler.enable(file, all_threads=True)
    _ours = weakref.ref(file)
