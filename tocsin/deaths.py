"""
What the watching parent has told of an end, made into all that can be known of it, and stored.

A short-lived process, started by `tocsin.watch` for each end that is worth it. The bare fact is on the disk
before; this takes over what the dead program left, puts it together with what the parent saw, and writes
the fuller line in the place of the bare one. Whatever becomes of it, the fact is kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from tocsin import semconv
from tocsin.contained import contained
from tocsin.exporter import deathnote, orphans, scrub
from tocsin.exporter import spool as spooling
from tocsin.exporter.deathnote import Evidence
from tocsin.exporter.drain import Drain
from tocsin.exporter.spool import VERSION, Orphan
from tocsin.ids import uuid7
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.text import clean, one_line

CRASH_LOOP: Final = "CrashLoop"
MEMORY_LIMIT: Final = "MemoryLimit"

LOOP_DEATHS: Final = 5
LOOP_SPAN: Final = timedelta(minutes=10)
_CALM_DEATHS: Final = 2  # so few within the span: the loop is over, and the next one is another

_FATAL: Final = 21  # OpenTelemetry's number for what ends a process
_WARNING: Final = 13
_DRAIN_S: Final = 3.0
_MOST_TIMES: Final = 50
_OLD_S: Final = 3600.0
_OLD_FINDING_S: Final = 30 * 86_400.0  # a process that lives on has it for as long as its memory is that high
_GREW_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the parent says of an end, see `tocsin.watch`; times in nanoseconds of the epoch, 0 for never."""

    how: str  #               died, late, restarted
    is_told: bool  #          the program has told of its exception by itself
    folder: Path  #           of the spool
    stem: str  #              the note there with the bare fact, locked by the parent
    error_id: str
    service: str
    command: Sequence[str]
    pid: int
    watcher: int
    code: int
    asked: Sequence[int]
    began_ns: int
    ended_ns: int
    stopping_ns: int
    oom_kills: int | None
    has_core: bool
    peak_bytes: int
    memory_bytes: int  #      that was beyond …
    max_memory: int  #        … this
    is_forced: bool
    grew: str  #              in its memory, as it has said itself
    stderr: bytes

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Told:
        """Read what came from the parent."""
        values = {name: content[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "folder": Path(content["folder"]), "stderr": bytes.fromhex(content["stderr"])})


def main(content: Mapping[str, Any]) -> None:
    """Write down all that is known of an end, say so to the parent, and store it within a bound."""
    told = Told.of(content)
    settings, _ = Settings.load_leniently()
    settings = settings.with_names(told.service, None)
    scrub.hide(settings.secrets())
    write(told, settings)
    with suppress(OSError):
        os.write(1, b"written\n")
    _store(told, settings)
    with contained("sweeping the spool"):
        _sweep(told.folder)


def write(told: Told, settings: Settings) -> None:
    """Replace the parent's note by a fuller one with the same id; what the program left is settled with it."""
    path = told.folder / f"{told.stem}.0001.seg"
    head = path.read_bytes().partition(b"\n")[0] + b"\n"
    with _left_by(told) as left:
        lines = [] if told.is_told else [line_of(told, left)]
        if told.how != "late" and (loop := _loop(told, settings)):
            lines.append(loop)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(head + b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        for orphan in left:
            orphan.note_told()


@contextmanager
def _left_by(told: Told) -> Iterator[list[Orphan]]:
    """What the program left of itself, held so that nobody else tells of its end; the newest last."""
    found = list(spooling.adopt_orphans(told.folder, told.pid))
    its = [one for one in found if one.words is not None and one.words.watcher_pid == told.watcher]
    try:
        yield its
    finally:
        for orphan in found:
            orphan.release(everything_stored=False)


def line_of(told: Told, left: Sequence[Orphan]) -> bytes:
    """The end as a line of the spool."""
    evidence = evidence_of(told, left)
    if told.how == "restarted":
        return _memory_line(told, evidence)
    line = deathnote.as_line(evidence)
    assert line is not None, "what is no error is not told"
    return line


def evidence_of(told: Told, left: Sequence[Orphan]) -> Evidence:
    """What the parent saw, and what the program left."""
    evidence = Evidence(
        error_id=told.error_id,
        service=told.service,
        began_ns=told.began_ns,
        ended_ns=told.ended_ns,
        command=told.command,
        code=told.code,
        asked=told.asked,
        stopping_ns=told.stopping_ns,
        dump=told.stderr.decode("utf-8", "replace"),
        oom_kills=told.oom_kills,
        has_core=told.has_core,
        peak_bytes=told.peak_bytes,
        stderr=told.stderr,
        grew=one_line(clean(scrub.scrub_text(told.grew)), _GREW_LIMIT),
    )
    for orphan in left:
        birth, header = spooling.birth_of(orphan.stem), spooling.header_of(orphan.segments())
        if birth is not None and header is not None:
            known = orphans.evidence_of(orphan, birth, header)
            evidence = replace(evidence, words=known.words, dump=known.dump or evidence.dump)
    return evidence


def _memory_line(told: Told, evidence: Evidence) -> bytes:
    taken, limit = _megabytes(told.memory_bytes), _megabytes(told.max_memory)
    how = "killed, since it did not stop" if told.is_forced else "stopped"
    message = f"{evidence.name} took {taken} of memory, more than {limit}: {how}, and started again"
    attributes = {
        semconv.TEMPLATE: clean(message),  # whatever grew, it is the same
        **deathnote.figures(evidence),
        semconv.PROCESS_MEMORY: told.memory_bytes,
        semconv.PROCESS_MEMORY_LIMIT: told.max_memory,
    }
    return _line(
        told.error_id,
        told.ended_ns,
        Severity.MEDIUM,
        kind=MEMORY_LIMIT,
        message=f"{message}; grew most: {evidence.grew}" if evidence.grew else message,
        place="memory limit",
        attributes=attributes,
    )


def _line(
    error_id: str,
    time_ns: int,
    severity: Severity,
    *,
    kind: str,
    message: str,
    place: str,
    attributes: Mapping[str, Any],
) -> bytes:
    line = {
        "v": VERSION,
        "kind": "error",
        "id": error_id,
        "time_unix_nano": time_ns,
        "severity_number": _FATAL if severity == Severity.CRITICAL else _WARNING,
        "event_name": semconv.EVENT_EXCEPTION,
        "trace_id": None,
        "span_id": None,
        "body": clean(message),
        "attributes": {
            semconv.EXCEPTION_TYPE: kind,
            semconv.MECHANISM: deathnote.MECHANISM,
            semconv.HANDLED: False,
            semconv.SEVERITY: str(severity),
            semconv.EXIT: True,
            semconv.PLACE: place,
            **attributes,
        },
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


# A program that dies again and again: by us or by whoever else starts it.


@dataclass(frozen=True, slots=True)
class Deaths:
    """When a service has died lately, in nanoseconds of the epoch, oldest first."""

    times_ns: tuple[int, ...] = ()
    is_told: bool = False  # that it does so again and again

    @classmethod
    def read(cls, text: str) -> Deaths:
        """As it stands in its file; what cannot be read counts for nothing."""
        with suppress(ValueError, KeyError, TypeError):
            content = json.loads(text)
            return cls(tuple(int(one) for one in content["times_ns"])[-_MOST_TIMES:], bool(content["is_told"]))
        return cls()

    def written(self) -> str:
        """For its file."""
        return json.dumps({"times_ns": self.times_ns, "is_told": self.is_told})

    def with_one(self, now_ns: int) -> tuple[Deaths, bool]:
        """With one more; and whether it is to be told that this is a loop: once, until it has run calmly."""
        span_ns = int(LOOP_SPAN.total_seconds() * 1e9)
        # Several may die at once, and are told in any order.
        times_ns = tuple(sorted([*(one for one in self.times_ns if abs(now_ns - one) < span_ns), now_ns]))
        times_ns = times_ns[-_MOST_TIMES:]
        is_told = self.is_told and len(times_ns) > _CALM_DEATHS
        is_loop = len(times_ns) >= LOOP_DEATHS
        return Deaths(times_ns, is_told or is_loop), is_loop and not is_told


def _loop(told: Told, settings: Settings) -> bytes | None:
    """A line that says that a service dies again and again; None where it does not, or where that was said."""
    with contained("counting deaths"):
        name = f"{told.service}\n{settings.environment}".encode()
        path = told.folder / f"{hashlib.blake2b(name, digest_size=8).hexdigest()}.deaths"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "r+", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # held for no longer than this
            deaths, is_to_tell = Deaths.read(file.read(65536)).with_one(told.ended_ns)
            file.seek(0)
            file.truncate()
            file.write(deaths.written())
        if is_to_tell:
            return loop_line(told, deaths)
    return None


def loop_line(told: Told, deaths: Deaths) -> bytes:
    """That a service dies again and again."""
    minutes = max(1, round((deaths.times_ns[-1] - deaths.times_ns[0]) / 60e9))
    last = deathnote.said_of(told.code) if told.how == "died" else "took too much memory"
    message = f"{one_line(clean(told.service))} died {len(deaths.times_ns)} times in {minutes} min; last: {last}"
    attributes = {semconv.PROCESS_COMMAND: deathnote.shown(told.command)} if told.command else {}
    return _line(
        uuid7(told.ended_ns),
        told.ended_ns,
        Severity.CRITICAL,
        kind=CRASH_LOOP,
        message=message,
        place="crash loop",
        attributes=attributes,
    )


# Storing it.


def _store(told: Told, settings: Settings) -> None:
    """Until the note is stored, within a bound; else whoever comes next stores it."""
    drain = Drain(settings, None, told.folder, _say, adopt_every_s=0.05)
    drain.start()
    path = told.folder / f"{told.stem}.live"
    until = time.monotonic() + _DRAIN_S
    while path.exists() and time.monotonic() < until:
        drain.wake()
        time.sleep(0.02)
    drain.finish(max(until - time.monotonic(), 0.1))


def _sweep(folder: Path) -> None:
    """Delete what programs noted for a parent that was killed."""
    for pattern, old_s in (("*.told", _OLD_S), ("*.grew", _OLD_FINDING_S)):
        for path in folder.glob(pattern):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > old_s:
                    path.unlink()


def _say(text: str) -> None:
    with suppress(Exception):
        sys.stderr.write(text + "\n")
