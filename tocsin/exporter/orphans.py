"""
What a process that is gone has left: taken over, and its end recorded where nobody else does that.

Exactly one error for each end: its line is appended to what the process left, under its lock, and has an
id that follows from the name of its files, so that whoever comes after an adopter that was killed in
between sees that it is there.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tocsin import clock, semconv
from tocsin.contained import contained, note
from tocsin.exporter import deathnote, life
from tocsin.exporter import spool as spooling
from tocsin.exporter.deathnote import DUMP_BYTES, Evidence
from tocsin.exporter.life import LastWords, State
from tocsin.exporter.spool import Birth, Orphan
from tocsin.ids import uuid7

WATCHER_S: Final = 15.0
"""How long a parent that has seen the end of a process has to tell of it."""

_CLOCKS_S: Final = 60  # how far two readings of a clock that is being set may be apart


def adopt(folder: Path, seen: dict[str, float]) -> Iterator[Orphan]:
    """
    Take over what dead processes left, their ends recorded.

    Args:
        seen: since when (monotonic) a stem is known that was left to its watcher; kept between calls.
    """
    waiting = set()
    for orphan in spooling.adopt_orphans(folder):
        with contained("finding out how a process ended"):
            if (
                _is_watched(orphan.words)
                and time.monotonic() < seen.setdefault(orphan.stem, time.monotonic()) + WATCHER_S
            ):
                waiting.add(orphan.stem)
                orphan.release(everything_stored=False)
                continue
            tell(orphan)
        yield orphan
    for stem in seen.keys() - waiting:
        del seen[stem]


def tell(orphan: Orphan) -> None:
    """Find out how a process ended, and record it where it is an error; again changes nothing."""
    birth, segments = spooling.birth_of(orphan.stem), orphan.segments()
    header = spooling.header_of(segments)
    if birth is None or header is None or "door" in header:
        return
    evidence = evidence_of(orphan, birth, header)
    state = orphan.words.state if orphan.words is not None else State.UNMARKED
    if state != State.ENDED and _is_still_there(birth, header):
        orphan.note_told()  # it has become another program, whose end is not ours to tell
        return
    orphan.ended_ns = evidence.ended_ns
    is_told = spooling.has_line(spooling.last_of(segments), evidence.error_id)
    if state == State.TOLD and not is_told:
        return  # by its watcher, who knows more
    orphan.how = deathnote.judge(evidence).how
    line = deathnote.as_line(evidence)
    if line is None:
        return
    try:
        if not is_told:
            orphan.append(line)
        orphan.note_told()
    except OSError as problem:
        orphan.is_waiting = True
        note("recording how a process ended", problem)


def evidence_of(orphan: Orphan, birth: Birth, header: dict[str, Any]) -> Evidence:
    """What a process that nobody has seen die has left of itself."""
    dump, dumped_ns = _fault(orphan)
    words = orphan.words
    times = [birth.began_ns, dumped_ns, words.seen_ns if words else 0]
    times += [path.stat().st_mtime_ns for path in orphan.segments()]
    ended_ns = max((one for one in times if one <= clock.now_ns()), default=0) or clock.now_ns()
    resource = header.get("resource")
    service = resource.get(semconv.SERVICE_NAME) if isinstance(resource, dict) else None
    return Evidence(
        error_id=error_id(birth),
        service=str(service or "unknown_service"),
        began_ns=birth.began_ns,
        ended_ns=ended_ns,
        words=words,
        dump=dump,
        with_machine=_has_restarted(header, ended_ns),
    )


def error_id(birth: Birth) -> str:
    """
    The id of the error that the end of a process is, whoever tells of it: a UUIDv7 of the name of its files.

    So that two who tell of it, since one was killed over it, have told once.
    """
    return uuid7(birth.began_ns, birth.pid << 32 | birth.number)


def _is_watched(words: LastWords | None) -> bool:
    """Whether there is a parent that will tell of the end."""
    return words is not None and words.state in (State.ALIVE, State.LEFT) and life.is_there(words.watcher_pid)


def _fault(orphan: Orphan) -> tuple[str, int]:
    """What the interpreter wrote when a fatal signal came, and when."""
    path = spooling.fault_path(orphan.folder, orphan.stem)
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return "", 0
        with path.open("rb") as file:
            return file.read(DUMP_BYTES).decode("utf-8", "replace"), status.st_mtime_ns
    except OSError:
        return "", 0


def _is_still_there(birth: Birth, header: dict[str, Any]) -> bool:
    """Whether it only let go of its files: it has become another program, or has closed what it did not know."""
    ticks = header.get("start_ticks")
    return ticks is not None and header.get("boot_id") == life.boot_id() and life.start_ticks(birth.pid) == ticks


def _has_restarted(header: dict[str, Any], ended_ns: int) -> bool:
    """Whether the machine was started since; by the name of its run, since a clock may have been set."""
    then, now = header.get("boot_id"), life.boot_id()
    if then is not None and now is not None:
        return bool(then != now)
    began_ns = life.boot_time_ns()
    return began_ns is not None and ended_ns + _CLOCKS_S * 10**9 < began_ns
