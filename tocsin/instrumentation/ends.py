"""
Ends that run nothing of a program's own: `os._exit`, and becoming another program.

What is left of it says how it ended, so that nobody takes it for a death without a word.
"""

from __future__ import annotations

import functools
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

WATCHER: Final = "TOCSIN_WATCHER"
INSTANCE: Final = "TOCSIN_INSTANCE"
"""What a parent that sees the end of this process tells it: its own number, and the id of the instance."""

watched_by: dict[str, str] = {}
"""Those two, while there is such a parent; they are kept from the environment of this process's own children."""

_NAMES: Final = ("_exit", "execv", "execve")


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
    for name, wrap in zip(_NAMES, (_leaving, _becoming, _becoming), strict=True):
        if not hasattr(getattr(os, name), "_tocsin"):
            setattr(os, name, wrap(getattr(os, name)))


def uninstall() -> None:
    """Put back what was found, where nobody has wrapped it since."""
    for name in _NAMES:
        found = getattr(os, name)
        if hasattr(found, "_tocsin"):
            setattr(os, name, found.__wrapped__)


def _life() -> Life | None:
    """Where this process says how it ends, if its end means anything to anybody."""
    capture = state.current
    if not isinstance(capture, Capture):
        return None
    life = capture.spool.life
    return life if life.read().state is State.ALIVE else None


def _leaving(original: Callable[[int], Any]) -> Callable[[int], Any]:
    @functools.wraps(original)
    def _exit(status: int) -> Any:
        with contained("noting an exit"):
            if life := _life():
                life.set_state(State.LEFT, int(status))
                if int(status) and not watched_by:  # what it left says so; whoever started it may end by that code too
                    note_told()
        return original(status)

    _exit._tocsin = True  # type: ignore[attr-defined]
    return _exit


def _becoming(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def become(*args: Any, **kwargs: Any) -> Any:
        life = None
        with contained("noting that another program takes over"):
            if life := _life():
                life.set_state(State.ENDED)
            if watched_by:  # by a parent that stays the same
                os.environ.update(watched_by)
                args = tuple({**one, **watched_by} if isinstance(one, Mapping) else one for one in args)
        try:
            return original(*args, **kwargs)
        finally:  # it did not
            with contained("noting that this program goes on"):
                for name in watched_by:
                    os.environ.pop(name, None)
                if life is not None:
                    life.set_state(State.ALIVE)

    become._tocsin = True  # type: ignore[attr-defined]
    return become
