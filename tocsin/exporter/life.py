"""
What a process says of its own life in its ``.live`` file, which outlives it.

Each fact is one 64-bit cell of mapped memory: written by one store, from a signal handler too, and read by
whoever comes after, also when the process was killed in the middle of it.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ACTIVE: Final = 2
MEMORY: Final = 3
SEEN: Final = 4
STOPPING: Final = 5
STATE: Final = 6
WATCHER: Final = 7
"""The cells, each named for what stands in it; see `Life`."""

LOOP_LAG: Final = 0
LIMIT: Final = 1
TREND: Final = 2
MORE: Final = 8
"""Those at the end of the file, where an earlier version does not look, and how many there is room for."""

_CODE_SHIFT: Final = 8
_MOST_REQUESTS: Final = 2**31
_MOST_BYTES: Final = 2**53
_LAST_NS: Final = 2**62  # in the year 2116
_MOST_PID: Final = 2**31
_MOST_MS: Final = 2**31
_NOTHING: Final = 2**63  # a trend of 0 as it stands in its cell, which holds no sign: an empty one says nothing
_EXITING: Final = 0x4  # PF_EXITING of the kernel, in the flags of a process


class State(enum.IntEnum):
    """How far a process has got with its life."""

    UNMARKED = 0  # nothing can be told of its end: a forked helper, or an earlier version
    ALIVE = 1  #    an end without a further word is a death
    ENDED = 2  #    it has ended in order, or is about to
    LEFT = 3  #     by `os._exit`, with the exit code beside the state
    TOLD = 4  #     its end is recorded


@dataclass(frozen=True, slots=True)
class LastWords:
    """What a process has left in its cells; times in nanoseconds of the epoch, 0 for never."""

    active_requests: int
    memory_bytes: int  # resident set when it was looked at last
    seen_ns: int  #      when that was
    stopping_ns: int  #  since when it was asked to stop
    state: State
    exit_code: int  #    of `os._exit`
    watcher_pid: int  #  the parent that sees its end, 0 without one
    loop_lag_ms: int | None = None  #         how long its event loop kept others waiting lately
    memory_limit_bytes: int | None = None  #  at which it is ended
    memory_trend: int | None = None  #        bytes in an hour, less than 0 where it shrinks


class Life:
    """The cells of this process, and `MORE` more: plain memory to write to, for as long as it lives."""

    __slots__ = ("_cells", "_more")

    def __init__(self, cells: memoryview[int], more: memoryview[int]) -> None:
        self._cells = cells
        self._more = more

    def set_active(self, requests: int) -> None:
        """How many requests are under way."""
        self._cells[ACTIVE] = requests

    @property
    def active(self) -> memoryview[int]:
        """The one cell in which that stands, for whoever has no time for a call."""
        return self._cells[ACTIVE : ACTIVE + 1]

    def note_memory(self, memory_bytes: int, now_ns: int) -> None:
        """The resident set in bytes, and so that the process lives."""
        self._cells[MEMORY] = memory_bytes
        self._cells[SEEN] = now_ns

    def note_loop_lag(self, milliseconds: float) -> None:
        """How long its event loop kept others waiting lately, at the most."""
        self._more[LOOP_LAG] = min(max(int(milliseconds), 0), _MOST_MS - 1) + 1

    def note_limit(self, memory_bytes: int) -> None:
        """At how much memory it is ended; 0 where there is no limit."""
        self._more[LIMIT] = min(max(memory_bytes, 0), _MOST_BYTES - 1)

    def note_trend(self, bytes_per_hour: float) -> None:
        """How fast its memory grows, as it has gone lately; less than 0 where it shrinks."""
        self._more[TREND] = _NOTHING + min(max(int(bytes_per_hour), 1 - _MOST_BYTES), _MOST_BYTES - 1)

    @property
    def is_stopping(self) -> bool:
        """Whether somebody has asked for the end."""
        return self._cells[STOPPING] > 0

    def note_stopping(self, now_ns: int) -> None:
        """Somebody has asked for the end; the first time counts."""
        if not self._cells[STOPPING]:
            self._cells[STOPPING] = now_ns

    def set_state(self, state: State, exit_code: int = 0) -> None:
        """How far it has got; `exit_code` with `State.LEFT`."""
        self._cells[STATE] = state_cell(state, exit_code)

    def set_watcher(self, pid: int) -> None:
        """The parent that will tell how this process ended."""
        self._cells[WATCHER] = pid

    def take_over(self, other: Life) -> None:
        """Say what another has said, in whose place this is."""
        for cell in (ACTIVE, MEMORY, SEEN, STOPPING, STATE, WATCHER):
            self._cells[cell] = other._cells[cell]
        for cell in (LOOP_LAG, LIMIT, TREND):
            self._more[cell] = other._more[cell]

    def read(self) -> LastWords:
        """What stands there now."""
        return last_words(self._cells, self._more)


def state_cell(state: State, exit_code: int = 0) -> int:
    """A state as it stands in its cell."""
    return state | (exit_code & 0xFF) << _CODE_SHIFT


def last_words(cells: memoryview[int], more: memoryview[int] | None = None) -> LastWords:
    """
    What a process, dead or alive, has written; `more` is None where it is one of an earlier version.

    It was a file on a disk: figures that cannot be count as not known, a state of a later version or one
    that nobody writes as unmarked, so that nothing is told of it.
    """
    state = cells[STATE]
    known = state & 0xFF
    is_known = known in State._value2member_map_ and state >> 2 * _CODE_SHIFT == 0
    return LastWords(
        active_requests=_below(cells[ACTIVE], _MOST_REQUESTS),
        memory_bytes=_below(cells[MEMORY], _MOST_BYTES),
        seen_ns=_below(cells[SEEN], _LAST_NS),
        stopping_ns=_below(cells[STOPPING], _LAST_NS),
        state=State(known) if is_known else State.UNMARKED,
        exit_code=state >> _CODE_SHIFT & 0xFF,
        watcher_pid=_below(cells[WATCHER], _MOST_PID),
        loop_lag_ms=more[LOOP_LAG] - 1 if more and 0 < more[LOOP_LAG] <= _MOST_MS else None,
        memory_limit_bytes=_below(more[LIMIT], _MOST_BYTES) or None if more else None,
        memory_trend=_trend(more[TREND]) if more else None,
    )


def _trend(cell: int) -> int | None:
    return cell - _NOTHING if abs(cell - _NOTHING) < _MOST_BYTES else None


# Which process it is, of all that ever had its number.


def birth_marks() -> dict[str, Any]:
    """What tells this process from any other, for the head of its files; empty where the system does not say."""
    found = {"boot_id": boot_id(), "start_ticks": start_ticks(os.getpid())}
    return {name: value for name, value in found.items() if value is not None}


def boot_id() -> str | None:
    """What the machine calls the time since it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return None


def boot_time_ns() -> int | None:
    """When the machine was started, by its clock of now."""
    try:
        words = Path("/proc/stat").read_bytes().partition(b"\nbtime ")[2].split(maxsplit=1)
        return int(words[0]) * 10**9
    except (OSError, ValueError, IndexError):
        return None


def start_ticks(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None where it is none any more, or just ending."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        state, *rest = stat.rpartition(b")")[2].split()  # the program's name may hold anything
        # It lets go of its locks before it is dead.
        return None if state in (b"Z", b"X") or int(rest[5]) & _EXITING else int(rest[18])
    except (OSError, ValueError, IndexError):
        return None


def is_there(pid: int) -> bool:
    """Whether there is a process of that number."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return start_ticks(pid) is not None if Path("/proc/self/stat").exists() else True


def resident_bytes() -> int | None:
    """The resident memory of this process in bytes; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _below(value: int, most: int) -> int:
    return value if value < most else 0
