"""
Ends that run nothing of a program's own: `os._exit`, and becoming another program.

What is left of it says how it ended, so that nobody takes it for a death without a word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tocsin.contained import contained
from tocsin.exporter.life import Life, State
from tocsin.instrumentation import state
from tocsin.instrumentation.capture import Capture
from tocsin.instrumentation.patches import Layer, Patch

WATCHER: Final = "TOCSIN_WATCHER"
INSTANCE: Final = "TOCSIN_INSTANCE"
"""What a parent that sees the end of this process tells it: its own number, and the id of the instance."""

watched_by: dict[str, str] = {}
"""Those two, while there is such a parent; they are kept from the environment of this process's own children."""


def take_watcher() -> None:
    """Read who watches this process, and take it out of the environment; again is harmless."""
    found = {name: value for name in (WATCHER, INSTANCE) if (value := os.environ.pop(name, ""))}
    if found.get(WATCHER) == str(os.getppid()):
        watched_by.update(found)


def note_told() -> None:
    """For `tocsin run`, which has started this process or one before it: why it ends need not be told again."""
    if told := os.environ.get("TOCSIN_TOLD"):
        with contained("noting what was told"):
            Path(told).touch(mode=0o600)


def stay_interrupted() -> None:
    """
    Leave the exit code to Ctrl-C where that has ended the program, whatever ran since.

    Python then ends by SIGINT, as shells and supervisors expect; it forgets to as soon as any source text is
    executed, which each dataclass of a module that is imported this late does.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        with suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102  (the only way to say so)


def watcher_pid() -> int:
    """The parent that sees this process's end; 0 for none."""
    return int(watched_by.get(WATCHER, "0"))


def install() -> None:
    """Wrap what ends a process without a word; harmless when called twice."""
    for patch in _PATCHES:
        patch.install()


def uninstall() -> None:
    """Put back what was found, where nobody has wrapped it since."""
    for patch in _PATCHES:
        patch.uninstall()


def _life() -> Life | None:
    """Where this process says how it ends, if its end means anything to anybody."""
    capture = state.current
    if not isinstance(capture, Capture):
        return None
    life = capture.spool.life
    return life if life.read().state is State.ALIVE else None


def _leaving(layer: Layer) -> Callable[..., Any]:
    def _exit(status: int) -> Any:
        with contained("noting an exit"):
            if life := _life():
                life.set_state(State.LEFT, int(status))
                if int(status) and not watched_by:  # what it left says so; whoever started it may end by that code too
                    note_told()
        return layer.before(status)

    return _exit


def _becoming(layer: Layer) -> Callable[..., Any]:
    def become(*args: Any, **kwargs: Any) -> Any:
        life = None
        with contained("noting that another program takes over"):
            if life := _life():
                life.set_state(State.ENDED)
            if watched_by:  # by a parent that stays the same
                os.environ.update(watched_by)
                args = tuple({**one, **watched_by} if isinstance(one, Mapping) else one for one in args)
        try:
            return layer.before(*args, **kwargs)
        finally:  # it did not
            with contained("noting that this program goes on"):
                for name in watched_by:
                    os.environ.pop(name, None)
                if life is not None:
                    life.set_state(State.ALIVE)

    return become


_PATCHES: Final = (Patch(os, "_exit", _leaving), Patch(os, "execv", _becoming), Patch(os, "execve", _becoming))
