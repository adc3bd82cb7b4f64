"""
The durable buffer on local disk: one appended line for each error, and counters for storms.

Each process has files of its own in the spool folder, under one stem (``start-pid-random``):

- ``<stem>.0001.seg``, ``.0002.seg`` …: JSON lines, appended with one ``write`` each, which is what
  survives a ``kill -9``. The first line of each says whose it is.
- ``<stem>.0001.sent`` …: up to which byte a server has acknowledged that segment; only where errors go to one.
- ``<stem>.live``: locked while its process lives (a POSIX lock, which goes with the process), and
  mapped into memory: how often each storming error happened again, how many errors were lost since
  the folder was full, and how the process is (`tocsin.exporter.life`). Each is one store into that
  memory, so it survives as well.
- ``<stem>.fault``: where the interpreter writes its stacks when a fatal signal comes.

What a dead process left is taken over by whoever gets its lock. Nothing here waits: not for a lock
that another thread or an interrupted call may hold, not for a network.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import re
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice, repeat
from operator import setitem
from pathlib import Path
from typing import Any, Final

from tocsin import clock
from tocsin.contained import contained, note, pass_on
from tocsin.exporter import life
from tocsin.exporter.life import LastWords, Life, State, last_words

VERSION: Final = 1
SEGMENT_BYTES: Final = 8 * 2**20
LINE_BYTES: Final = 256 * 2**10
SLOTS: Final = 1024

# The .live file: 64-bit cells (magic, lost, six of the process's life, then a count and a flushed count per
# slot), then the ids, and what else is said of its life.
_MAGIC: Final = int.from_bytes(b"tocsin1\0", "little")
_LOST: Final = 1
_COUNTS: Final = 8
_FLUSHED: Final = _COUNTS + SLOTS
_IDS: Final = 8 * (_FLUSHED + SLOTS)
_ID_BYTES: Final = 40
_MORE: Final = _IDS + SLOTS * _ID_BYTES
_LIVE_BYTES: Final = _MORE + 8 * life.MORE

_ASIDE_BYTES: Final = 16 * 2**20

_SETTLED_S: Final = 2.0
_NEW_S: Final = 3600.0  # far longer than a file is new, whatever the clock does meanwhile

# Stems whose .live file this process has open: its own, and those that it has taken over. A POSIX lock
# belongs to the process: it would get its own locks again, and lose them with whatever it closes.
_held: set[str] = set()
_own: weakref.WeakSet[Spool] = weakref.WeakSet()  # those that this process writes to
_adopting = threading.Lock()


def _after_fork() -> None:
    global _adopting, _own
    _held.clear()
    _own = weakref.WeakSet()
    _adopting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Spool:
    """
    The writing side, one for each process.

    Args:
        folder: made if need be, for its user alone.
        max_bytes: the most that the folder may hold; beyond it errors are only counted as lost.
        header: the first line of each segment, whose the lines are.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int, header: dict[str, Any]) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        # Only a segment that is left behind makes room: of a small spool one may not be all.
        self._segment_bytes = min(SEGMENT_BYTES, max_bytes // 4)
        _make_folder(folder)
        self.stem = _new_stem()
        content = {"v": VERSION, "kind": "segment", **header, **life.birth_marks()}
        self._header = (json.dumps(content) + "\n").encode()
        _held.add(self.stem)
        self._live = _Live.create(folder / f"{self.stem}.live")
        self._sequence = count(1)
        self._rotating = threading.Lock()  # only ever tried, never waited for
        self._sealed: list[_Sealed] = []
        self._torn = False
        self.folder_bytes = folder_bytes(folder)  # refreshed by the drain; appends add to it
        self._path, self._fd, self._size = self._new_segment()
        _own.add(self)

    def append(self, line: bytes, *, durable: bool = False) -> bool:
        """
        Write one line; False when it was lost, which is counted.

        Args:
            line: JSON in UTF-8 that ends with a newline.
            durable: wait until it is on the disk (0.25 ms): the process is about to die.
        """
        is_written = self._append(line, durable=durable)
        if not is_written:
            self._live.lose()
        return is_written

    def _append(self, line: bytes, *, durable: bool = False) -> bool:
        size = len(line)
        if size > LINE_BYTES or self.folder_bytes + size > self.max_bytes:
            return False
        if self._size + size > self._segment_bytes:
            self._rotate()
        if self._torn:  # a line cut short by a full disk is closed before the next one
            line = b"\n" + line
        fd = self._fd
        try:
            written = os.write(fd, line)
            if durable:
                os.fsync(fd)
        except OSError as problem:
            pass_on(problem)
            note("writing to the spool", problem)
            return False
        self._size += written
        self.folder_bytes += written
        self._torn = written < len(line)
        return not self._torn

    def append_all(self, lines: Sequence[bytes]) -> bool:
        """
        Write some lines that their sender still has, and wait until they are on the disk.

        Returns:
            False when they did not all go in: the sender shall send them again. Nothing counts as lost.
        """
        portion: list[bytes] = []
        size = 0
        for line in lines:
            if size + len(line) > LINE_BYTES and portion:
                # A sync is for one file: what the next portion leaves behind goes to the disk now.
                is_last_of_file = self._size + size + LINE_BYTES > self._segment_bytes
                if not self._append(b"".join(portion), durable=is_last_of_file):
                    return False
                portion, size = [], 0
            portion.append(line)
            size += len(line)
        return not portion or self._append(b"".join(portion), durable=True)

    def lose(self) -> None:
        """Count one error as lost."""
        self._live.lose()

    def counter(self, error_id: str) -> Counter | None:
        """A counter of further errors like this one; None when every slot is taken."""
        return self._live.bind(error_id)

    def flush_counts(self, idle_after_ns: int = 2_000_000_000) -> bool:
        """
        Append what was counted since the last call, and free the counters that rest; for the drain.

        A count goes into the segment as an absolute span (from, to), so that whoever reads it can
        tell what was counted already, whatever died in between.

        Returns:
            Whether anything was counted.
        """
        moment = clock.now_ns()
        anything = False
        for slot, counter in list(self._live.counters.items()):
            total, flushed = self._live.total(slot), self._live.flushed(slot)
            if total > flushed:
                if not self._append(_repeats_line(counter.error_id, flushed, total, moment)):
                    continue  # nothing is lost: the counter keeps it
                self._live.set_flushed(slot, total)
                counter.active_ns = moment
                anything = True
            elif moment - counter.active_ns > idle_after_ns:
                self._live.free(slot)
        return anything

    @property
    def life(self) -> Life:
        """What this process says of itself to who comes after it."""
        return self._live.life

    @property
    def lost(self) -> int:
        """How many errors could not be written since this process started."""
        return self._live.lost

    def segments(self) -> list[Path]:
        """This process's segments that still exist, oldest first."""
        return _segments_of(self.folder, self.stem)

    def is_open(self, path: Path) -> bool:
        """Whether more may still be appended to that segment."""
        return path == self._path

    def remove(self, path: Path) -> bool:
        """
        Delete a segment that is stored to its end; False while it is too early.

        A thread may have been about to write when the segment was turned over; it must find its
        descriptor, and not another file that got the same number.
        """
        for sealed in self._sealed:
            if sealed.path == path:
                if time.monotonic() - sealed.at < _SETTLED_S:
                    return False
                self._sealed.remove(sealed)
                os.close(sealed.fd)
                break
        _delete(path)
        return True

    def refresh(self) -> None:
        """Look how much the folder holds now, and whether somebody has deleted the files that are open."""
        self.folder_bytes = folder_bytes(self.folder)
        if os.fstat(self._fd).st_nlink == 0 or not self._live.is_there():
            self._begin_anew()

    def close(self, *, everything_stored: bool) -> None:
        """Let go of the files; delete them when all of it is stored, else leave them for who comes next."""
        _own.discard(self)
        paths = self.segments() if everything_stored else []
        self._close()
        if self.life.read().state == State.ALIVE:
            self.life.set_state(State.ENDED)
        for path in paths:
            _delete(path)
        self._live.close(remove=everything_stored)
        fault_path(self.folder, self.stem).unlink(missing_ok=True)
        _held.discard(self.stem)

    def abandon(self) -> None:
        """Close this process's copies of what its parent owns, after a fork; the files stay the parent's."""
        with contained("closing an inherited spool"):
            self._close()
            self._live.close(remove=False)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)
        for sealed in self._sealed:
            os.close(sealed.fd)
        self._sealed.clear()

    def _begin_anew(self) -> None:
        """Under a new stem: without its .live file nobody could take over what is written from now on."""
        old_stem, old_live, old = self.stem, self._live, _Sealed(self._fd, self._path, time.monotonic())
        _make_folder(self.folder)
        self.stem = _new_stem()
        _held.add(self.stem)
        live = _Live.create(self.folder / f"{self.stem}.live")
        live.life.take_over(self.life)
        self._path, self._fd, self._size = self._new_segment()
        self._sealed.append(old)
        self.flush_counts()
        self._live = live
        for counter in old_live.counters.values():
            counter.is_free = True  # whoever holds it takes a new one
        old_live.close(remove=True)
        fault_path(self.folder, old_stem).unlink(missing_ok=True)
        _held.discard(old_stem)

    def _new_segment(self) -> tuple[Path, int, int]:
        path = self.folder / f"{self.stem}.{next(self._sequence):04d}.seg"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
        try:
            written = os.write(fd, self._header)
        except OSError:
            written = 0
        return path, fd, written

    def _rotate(self) -> None:
        # Who does not get the lock goes on in the old segment, which may grow a little longer. The old
        # descriptor stays open until its segment is removed: another thread may be about to use it.
        if not self._rotating.acquire(blocking=False):
            return
        try:
            old = _Sealed(self._fd, self._path, time.monotonic())
            self._path, self._fd, self._size = self._new_segment()
            self._sealed.append(old)
        except OSError as problem:
            note("opening a new spool segment", problem)
        finally:
            self._rotating.release()


@dataclass(frozen=True, slots=True)
class _Sealed:
    fd: int
    path: Path
    at: float  # monotonic


class Counter:
    """Counts one kind of error in mapped memory; calling `tick` is all that a storm costs."""

    __slots__ = ("active_ns", "error_id", "is_free", "tick")

    def __init__(self, error_id: str, tick: Callable[[], object]) -> None:
        self.error_id = error_id
        self.tick = tick
        self.active_ns = clock.now_ns()
        self.is_free = False


class _Live:
    """The .live file of this process, or plain memory where the disk is too full even for that."""

    def __init__(self, fd: int | None, memory: mmap.mmap, path: Path) -> None:
        self._fd = fd
        self._memory = memory
        self._path = path
        self._view = memoryview(memory)
        self._cells = self._view[:_IDS].cast("Q")
        self._cells[0] = _MAGIC
        self.lose = _ticker(self._cells, _LOST)
        self.life = Life(self._cells, self._view[_MORE:].cast("Q"))
        self.counters: dict[int, Counter] = {}
        self._free = list(range(SLOTS - 1, -1, -1))

    @classmethod
    def create(cls, path: Path) -> _Live:
        # Locked under another name first: nobody may find it unlocked and take it for an orphan's.
        unnamed = path.with_suffix(".new")
        fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path)
        try:
            # Real blocks, not a hole: storing into a hole on a full disk would end the process (SIGBUS).
            os.posix_fallocate(fd, 0, _LIVE_BYTES)
            memory = mmap.mmap(fd, _LIVE_BYTES)
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            memory = mmap.mmap(-1, _LIVE_BYTES)
        return cls(fd, memory, path)

    @property
    def lost(self) -> int:
        return self._cells[_LOST]

    def bind(self, error_id: str) -> Counter | None:
        try:
            slot = self._free.pop()
        except IndexError:
            return None
        # The id comes last: a slot without one counts for nothing.
        self._cells[_COUNTS + slot] = self._cells[_FLUSHED + slot] = 0
        start = _IDS + slot * _ID_BYTES
        self._view[start : start + 36] = error_id.encode("ascii")
        counter = self.counters[slot] = Counter(error_id, _ticker(self._cells, _COUNTS + slot))
        return counter

    def is_there(self) -> bool:
        return self._fd is None or os.fstat(self._fd).st_nlink > 0

    def total(self, slot: int) -> int:
        return self._cells[_COUNTS + slot]

    def flushed(self, slot: int) -> int:
        return self._cells[_FLUSHED + slot]

    def set_flushed(self, slot: int, total: int) -> None:
        self._cells[_FLUSHED + slot] = total

    def free(self, slot: int) -> None:
        # In two steps: whoever holds the counter sees `is_free` and takes a new one; ticks that were
        # already on their way are seen by the next flush, which frees the slot only then.
        counter = self.counters[slot]
        if not counter.is_free:
            counter.is_free = True
            counter.active_ns = clock.now_ns()
            return
        start = _IDS + slot * _ID_BYTES
        self._view[start : start + 36] = bytes(36)
        del self.counters[slot]
        self._free.insert(0, slot)

    def close(self, *, remove: bool) -> None:
        if remove:
            self._path.unlink(missing_ok=True)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        # The map itself stays until nobody can count any more; a late tick must not meet freed memory.


def _ticker(cells: memoryview[int], index: int) -> Callable[[], object]:
    """
    A call that adds one to a cell of its own.

    Counting and storing happen inside one call into C, so that neither a thread nor a signal handler
    can come between them, and no lock is needed.
    """
    return map(setitem, repeat(cells), repeat(index), count(cells[index] + 1)).__next__  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a segment: its content, or None where it cannot be read; `end` is the byte after it."""

    content: dict[str, Any] | None
    raw: bytes
    end: int


def read_segment(
    path: Path,
    position: int = 0,
    *,
    max_bytes: int = 4 * 2**20,
    max_lines: int | None = None,
    is_final: bool = False,
) -> list[Line]:
    """
    The lines of a segment from a position on, oldest first.

    A line that cannot be read is returned without content, for the caller to set aside. A last line
    without its end is left for later, or given up when nobody can finish it any more.

    Args:
        path: JSON lines in UTF-8, at most 256 KiB each; not trusted.
        position: bytes to skip; a place where a line begins.
        max_bytes: how much to read at once, so that a long outage cannot fill the memory.
        max_lines: how many of them are wanted; the rest is not looked at.
        is_final: the process that wrote it is gone.
    """
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read(max_bytes)
    except FileNotFoundError:
        return []
    lines: list[Line] = []
    for raw in islice(_split(data), max_lines):
        position += len(raw)
        if not raw.endswith(b"\n"):
            is_endless = not lines and len(data) >= max_bytes  # no line is so long: it is broken, and passed
            if is_endless or (is_final and len(data) < max_bytes):
                lines.append(Line(None, raw, position))
            break
        if raw == b"\n":
            lines.append(Line({}, raw, position))
            continue
        lines.append(Line(_parse(raw), raw, position))
    return lines


def _split(data: bytes) -> list[bytes]:
    """Lines with their ends; at newlines alone, since `bytes.splitlines` takes a carriage return for one too."""
    whole, _, rest = data.rpartition(b"\n")
    lines = [line + b"\n" for line in whole.split(b"\n")] if len(rest) < len(data) else []
    return [*lines, rest] if rest else lines


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("v") == VERSION else None


@dataclass(slots=True)
class Orphan:
    """What a dead process left, held under its lock until it is stored."""

    folder: Path
    stem: str
    lost: int  # errors that it could only count
    words: LastWords | None  # None where it has left none
    _fd: int
    ended_ns: int = 0  #        when it was seen last, as far as anybody knows
    how: str | None = None  #   how it ended, in a word
    is_waiting: bool = False  # for its end to be recorded: nothing of it is deleted before

    def segments(self) -> list[Path]:
        """Its segments, oldest first."""
        return _segments_of(self.folder, self.stem)

    def append(self, line: bytes) -> None:
        """
        Add a line to its segments, on the disk when this returns; the file is as old as it was before.

        Raises:
            OSError: the disk is full; what is there of the line is passed over by who reads it.
        """
        _append_to(last_of(self.segments()), [line])

    def note_told(self) -> None:
        """Its end is recorded: nobody else shall do it again."""
        code = self.words.exit_code if self.words is not None else 0
        os.pwrite(self._fd, life.state_cell(State.TOLD, code).to_bytes(8, "little"), 8 * life.STATE)

    def release(self, *, everything_stored: bool) -> None:
        """Delete the files when all of it is stored, else leave them for later."""
        if everything_stored and not self.is_waiting:
            for path in self.segments():
                _delete(path)
            fault_path(self.folder, self.stem).unlink(missing_ok=True)
            (self.folder / f"{self.stem}.live").unlink(missing_ok=True)
        os.close(self._fd)
        _held.discard(self.stem)


def adopt_orphans(folder: Path, pid: int | None = None) -> Iterator[Orphan]:
    """
    Take over what dead processes left in a spool folder; each by one taker only.

    The counts that they could not flush any more are appended to their last segment first, so that
    reading the segments tells all.

    Args:
        pid: take only what was left under this number.
    """
    _sweep_lives(folder)
    stems = {path.stem for path in folder.glob("*.live")}
    # A segment whose .live file somebody has deleted is an orphan too: a process makes that file first.
    stems |= {path.name.partition(".")[0] for path in folder.glob("*.seg")}
    for stem in sorted(stems):
        born = birth_of(stem)
        if pid is not None and (born is None or born.pid != pid):
            continue
        with contained("taking over a spool"):
            orphan = _adopt(folder / f"{stem}.live")
            if orphan is not None:
                yield orphan


def _sweep_lives(folder: Path) -> None:
    """Delete what a process left that was killed as it began or ended."""
    for path in folder.glob("*.fault"):
        if not path.with_suffix(".live").exists():  # which is made first, and deleted last
            path.unlink(missing_ok=True)
    for path in folder.glob("*.new"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _NEW_S:
                path.unlink()


def _adopt(path: Path) -> Orphan | None:
    with _adopting:
        if path.stem in _held:
            return None
        orphan = _lock(path)
        if orphan is not None:
            _held.add(path.stem)
        return orphan


def _lock(path: Path) -> Orphan | None:
    has_segments = bool(_segments_of(path.parent, path.stem))
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if has_segments else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink == 0:  # someone else finished it in between
            raise BlockingIOError
        if not os.pread(fd, 1, 0) and not _segments_of(path.parent, path.stem):
            path.unlink()  # made just above, for a process that was just leaving
            raise BlockingIOError
        lost = int.from_bytes(os.pread(fd, 8, 8 * _LOST), "little")
        orphan = Orphan(path.parent, path.stem, lost, _words_in(fd), fd)
        _append_unflushed(orphan, fd)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return orphan


def _words_in(fd: int) -> LastWords | None:
    head = os.pread(fd, 8 * _COUNTS, 0)
    if len(head) < 8 * _COUNTS or int.from_bytes(head[:8], "little") != _MAGIC:
        return None
    more = os.pread(fd, 8 * life.MORE, _MORE)
    return last_words(memoryview(head).cast("Q"), memoryview(more).cast("Q") if len(more) == 8 * life.MORE else None)


def _append_unflushed(orphan: Orphan, fd: int) -> None:
    data = os.pread(fd, _MORE, 0)
    segments = orphan.segments()
    if len(data) < _MORE or int.from_bytes(data[:8], "little") != _MAGIC or not segments:
        return
    cells = memoryview(data)[:_IDS].cast("Q")
    waiting = {}
    for slot in range(SLOTS):
        total, flushed = cells[_COUNTS + slot], cells[_FLUSHED + slot]
        error_id = data[_IDS + slot * _ID_BYTES :][:36]
        if error_id[0] and total > flushed:
            waiting[error_id.decode("ascii", "replace")] = (flushed, total)
    if not waiting:
        return
    # It may have died between appending a span and noting that in the .live file.
    for path in segments:
        for line in read_segment(path, max_bytes=SEGMENT_BYTES * 2):
            if line.content and line.content.get("kind") == "repeats" and line.content.get("error_id") in waiting:
                flushed, total = waiting[line.content["error_id"]]
                waiting[line.content["error_id"]] = (max(flushed, line.content["to"]), total)
    moment = int(os.fstat(fd).st_mtime_ns)
    lines = [_repeats_line(error_id, begin, end, moment) for error_id, (begin, end) in waiting.items() if end > begin]
    if lines:
        _append_to(last_of(segments), lines)


def _append_to(path: Path, lines: Sequence[bytes]) -> None:
    """Behind what a dead process wrote, whose last line may be cut short; its age stays, which says when it died."""
    with path.open("r+b") as file:
        status = os.fstat(file.fileno())
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(b"".join(lines))
        file.flush()
        os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class Living:
    """A process that has a spool, as it is now."""

    stem: str
    words: LastWords
    lost: int


def living(folder: Path, most: int) -> Iterator[Living]:
    """
    The processes that have a spool in a folder and live, this one too; for who only looks.

    Locks are left alone: who opens and closes a .live file of its own process loses that lock.

    Args:
        most: how many are looked at, those that were started last.
    """
    for spool in list(_own):
        if spool.folder == folder:
            yield Living(spool.stem, spool.life.read(), spool.lost)
    paths = sorted(folder.glob("*.live"), reverse=True)
    for path in paths[:most]:
        with contained("looking at a process"):
            found = _look_at(path)
            if found is not None:
                yield found


def _look_at(path: Path) -> Living | None:
    with _adopting:
        if path.stem in _held:
            return None
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            is_locked, words = _is_locked(fd), _words_in(fd)
            lost = int.from_bytes(os.pread(fd, 8, 8 * _LOST), "little")
        finally:
            os.close(fd)
    return Living(path.stem, words, lost) if is_locked and words is not None else None


def _is_locked(fd: int) -> bool:
    """Whether another process has a lock on a file; asked, not tried, which would keep an adopter away."""
    if sys.platform == "linux":
        form, asked, at = "hhqqi4x", (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0), 0
    else:
        form, asked, at = "qqihh", (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET), 3
    found = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(form, *asked))
    return bool(struct.unpack(form, found)[at] != fcntl.F_UNLCK)


@dataclass(frozen=True, slots=True)
class Birth:
    """What a stem says of its process."""

    began_ns: int
    pid: int
    number: int  # 32 bits that no other has


def birth_of(stem: str) -> Birth | None:
    """Whose files they are; None for a name that is none of ours."""
    found = _STEM.fullmatch(stem)
    return Birth(int(found[1]), int(found[2]), int(found[3], 16)) if found else None


_STEM = re.compile(r"([0-9]{20})-([0-9]{1,10})-([0-9a-f]{8})")


def last_of(segments: Sequence[Path]) -> Path:
    """The last segment that says whose it is: its process may have died before it had begun another."""
    return next((path for path in reversed(segments) if _head_of(path) is not None), segments[-1])


def header_of(segments: Sequence[Path]) -> dict[str, Any] | None:
    """The first line of the segments of a process, whichever is there; None where none can be read."""
    return next((head for path in reversed(segments) if (head := _head_of(path)) is not None), None)


def _head_of(path: Path) -> dict[str, Any] | None:
    lines = read_segment(path, max_bytes=LINE_BYTES, max_lines=1)
    return lines[0].content if lines and lines[0].content and lines[0].content.get("kind") == "segment" else None


def has_line(path: Path, error_id: str) -> bool:
    """Whether an error is the last whole line of a segment."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 2 * LINE_BYTES, 0))
            *_, last, _ = (b"\n", *file.read(2 * LINE_BYTES).split(b"\n"))
    except FileNotFoundError:
        return False
    content = _parse(last)
    return content is not None and content.get("id") == error_id


def fault_path(folder: Path, stem: str) -> Path:
    """Where the interpreter of a process writes its stacks when a fatal signal comes."""
    return folder / f"{stem}.fault"


def acknowledged(folder: Path, segment: str) -> int:
    """Up to which byte a server has a segment (its file's name without the ending), as far as is known here."""
    try:
        position = int((folder / f"{segment}.sent").read_bytes())
        return position if 0 <= position <= (folder / f"{segment}.seg").stat().st_size else 0
    except (OSError, ValueError):
        return 0


def acknowledge(folder: Path, segment: str, position: int) -> None:
    """
    Note that a server has a segment up to a byte; all or nothing.

    It is not waited for until it is on the disk: what is forgotten is sent again, and counts once.
    """
    path = folder / f"{segment}.sent"
    new = path.with_suffix(".sent.new")
    data = str(position).encode()
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)
    new.rename(path)


def sweep(folder: Path) -> None:
    """Delete what was noted of segments that are gone: somebody died between the two."""
    for path in (*folder.glob("*.sent"), *folder.glob("*.sent.new")):
        if not (folder / f"{path.name.partition('.sent')[0]}.seg").exists():
            path.unlink(missing_ok=True)


def _delete(path: Path) -> None:
    """Delete a segment, then what is noted of it: a note without a segment harms nobody."""
    path.unlink(missing_ok=True)
    path.with_suffix(".sent").unlink(missing_ok=True)


def _repeats_line(error_id: str, begin: int, end: int, time_ns: int) -> bytes:
    content = {"v": VERSION, "kind": "repeats", "error_id": error_id, "from": begin, "to": end, "time_ns": time_ns}
    return (json.dumps(content) + "\n").encode()


def set_aside(folder: Path, raw: bytes, why: str) -> None:
    """Keep a line that cannot be stored where a person can look at it; bounded, the oldest goes first."""
    with contained("setting a refused error aside"):
        path = folder / "refused.jsonl"
        if path.exists() and path.stat().st_size > _ASIDE_BYTES:
            path.replace(folder / "refused.old.jsonl")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            reason = json.dumps({"why": why[:300]}).encode()
            os.write(fd, reason + b"\n" + raw.rstrip(b"\n")[:LINE_BYTES] + b"\n")
        finally:
            os.close(fd)


def default_max_bytes(folder: Path) -> int:
    """1 GiB, or a tenth of the free disk where that is less."""
    try:
        disk = os.statvfs(folder if folder.exists() else _nearest(folder))
        free = disk.f_bavail * disk.f_frsize
    except OSError:
        return 2**30
    return min(2**30, free // 10)


def folder_bytes(folder: Path) -> int:
    """What waits in a spool folder, and what was refused; the counters beside it have a fixed size."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((".live", ".new", ".sent", ".fault", ".kept")):
                    continue
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except OSError:
                    continue
    except OSError:
        return 0
    return total


def _new_stem() -> str:
    return f"{clock.now_ns():020d}-{os.getpid()}-{os.urandom(4).hex()}"


def _nearest(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _segments_of(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}.*.seg"))


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set TOCSIN_SPOOL_DIR")
