"""
How much memory a process may come to take, who says so, and how much of it is taken.

Three set a limit: `tocsin run --max-memory`, for the program with all that it has started; a control group, for
all that are in it; and the machine, which has no more. Each is measured as its keeper measures it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_GROUPS: Final = Path("/proc/self/cgroup")
_MOST_PROCESSES: Final = 200
_SCAN_EVERY_S: Final = 5.0
_SHARED_EVERY_S: Final = 30.0
_NEAR: Final = 0.7
_MOST_ANCESTORS: Final = 30


class Limit:  # no dataclass, which takes longer to make than all the rest of this module
    """
    A limit of memory in bytes, and who sets it.

    Args:
        by: ``--max-memory``, ``cgroup`` or ``machine``.
        used: how much of it is taken, given the resident memory of this process and the moment (monotonic).
        others: the resident memory of each of the other processes that it holds for as well.
    """

    __slots__ = ("by", "bytes", "others", "used")

    def __init__(self, by: str, size: int, used: Callable[[int, float], int], others: Callable[[], list[int]]) -> None:
        self.by = by
        self.bytes = size
        self.used = used
        self.others = others


def machine_bytes() -> int:
    """The memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def lowest() -> int:
    """The least that a control group or the machine allows, in bytes."""
    return min([machine_bytes(), *(one.bytes for one in of_groups())])


def found(max_memory: str = "") -> list[Limit]:
    """
    All limits of this process, the lowest first.

    Args:
        max_memory: what `tocsin run` says: bytes, and the number of the parent that looks after them.
    """
    limits = [Limit("machine", machine_bytes(), lambda resident, now_s: resident, list), *of_groups()]
    if (tree := Tree.of(max_memory)) is not None:
        limits.append(Limit("--max-memory", tree.limit, tree.used, tree.others))
    return sorted(limits, key=lambda one: one.bytes)


# Control groups.


def of_groups(root: Path = CGROUPS, own: Path = _OWN_GROUPS) -> list[Limit]:
    """The limits of the control groups of this process, of either version, that are below the machine's memory."""
    limits = []
    for folder in _folders(root, own):
        group = _Group(folder)
        limit = group.limit()
        if limit is not None and limit < machine_bytes():
            limits.append(Limit("cgroup", limit, group.used, group.others))
    return limits


def _folders(root: Path, own: Path) -> Iterator[Path]:
    """
    A group and those that it is in; in a container the group may be the root of what is seen.

    Source: cgroups(7), /proc/pid/cgroup.
    """
    try:
        lines = own.read_text("ascii", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        parts = [part for part in path.split("/") if part][:_MOST_ANCESTORS]
        if ".." in parts:  # outside of what this process may see
            parts = []
        for count in range(len(parts), -1, -1):
            yield base.joinpath(*parts[:count])


class _Group:
    """One control group; version 2 and version 1 call the same by other names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def limit(self) -> int | None:
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (value := _number(self._folder / name)) is not None:
                return value
        return None

    def used(self, resident: int, now_s: float) -> int:
        """What the kernel could not take back: without the pages of files, which it lets go of before it kills."""
        for name, file_pages in (
            ("memory.current", (b"inactive_file", b"active_file")),
            ("memory.usage_in_bytes", (b"total_inactive_file", b"total_active_file")),
        ):
            taken = _number(self._folder / name)
            if taken is not None:
                limit = self.limit()
                is_near = limit is None or taken > limit / 2  # the figures in full are dearer
                return max(taken - self._pages(file_pages), resident) if is_near else taken
        return resident

    def _pages(self, names: tuple[bytes, ...]) -> int:
        with suppress(OSError, ValueError):
            words = dict(line.split()[:2] for line in (self._folder / "memory.stat").read_bytes().splitlines())
            return sum(int(words.get(name, 0)) for name in names)
        return 0

    def others(self) -> list[int]:
        with suppress(OSError, ValueError):
            pids = [int(word) for word in (self._folder / "cgroup.procs").read_bytes().split()]
            return [resident_of(pid) for pid in pids[:_MOST_PROCESSES] if pid not in (0, os.getpid())]
        return []


# What `tocsin run` looks at: the program that it has started, and all that this one has.


class Tree:
    """The processes whose memory is added up; what several share counts once, as in `tocsin.watch`."""

    def __init__(self, root: int, limit: int) -> None:
        self.limit = limit
        self._root = root
        self._others: dict[int, int] = {}  # resident bytes by pid
        self._shared = 0
        self._next_scan_s = self._next_shared_s = float("-inf")

    @classmethod
    def of(cls, told: str) -> Tree | None:
        """As `tocsin run` says it; None where it says nothing, or is no ancestor of this process."""
        try:
            limit, watcher = map(int, told.split())
        except ValueError:
            return None
        pid = os.getpid()
        for _ in range(_MOST_ANCESTORS):
            parent = _parent_of(pid)
            if parent == watcher:
                return cls(pid, limit)
            if not parent:
                break
            pid = parent
        return None

    def used(self, resident: int, now_s: float) -> int:
        """By all of them, in bytes; the others are looked at now and then."""
        if now_s >= self._next_scan_s:
            self._next_scan_s = now_s + _SCAN_EVERY_S
            family = _family(self._root)
            self._others = {pid: resident_of(pid) for pid in family if pid != os.getpid()}
        taken = resident + sum(self._others.values())
        if not self._others or taken < self.limit * _NEAR:
            self._shared = 0
            return taken
        if now_s >= self._next_shared_s:  # dear to find out
            self._next_shared_s = now_s + _SHARED_EVERY_S
            self._shared = max(taken - sum(_own_share(pid) for pid in (*self._others, os.getpid())), 0)
        return max(taken - self._shared, resident)

    def others(self) -> list[int]:
        return list(self._others.values())


def _family(root: int) -> list[int]:
    """A process and its descendants, by what each of their threads has started."""
    family = [root]
    for pid in family:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  (once a few seconds, for hundreds of threads)
                family += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
        if len(family) > _MOST_PROCESSES:
            break
    return family[:_MOST_PROCESSES]


def resident_of(pid: int) -> int:
    """The resident memory of a process in bytes; 0 where it is gone."""
    with suppress(ValueError, IndexError):
        return int(_read(f"/proc/{pid}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _own_share(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return resident_of(pid)


def _parent_of(pid: int) -> int:
    with suppress(ValueError, IndexError):
        return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
    return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):  # no such file, or "max"
        return None
