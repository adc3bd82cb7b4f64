"""
The thread that empties the spool into the database.

It keeps no promise in memory: how far a segment was read is stored in the transaction that stores
what was read, so a crash, a lost connection or a second reader count nothing twice and lose nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tocsin import clock
from tocsin.contained import contained, failures, note, own_threads
from tocsin.exporter import decode as decoding
from tocsin.exporter import spool as spooling
from tocsin.exporter.spool import Line, Orphan, Spool
from tocsin.failures import Overtaken, SchemaMismatch, StoreAway
from tocsin.model import Batch, Entry, ErrorRecord, Instance, Stored
from tocsin.settings import Settings
from tocsin.text import clean, one_line

if TYPE_CHECKING:
    from tocsin.store import Store

BATCH_LINES = 500
BATCH_BYTES = 2 * 2**20
IDLE_S = 1.0
STORM_S = 0.25
RETRY_S = (0.25, 0.5, 1.0, 2.0)
ADOPT_EVERY_S = 2.0
SERVER_ADOPTS_EVERY_S = 0.5  # the last error of a service that died rings by way of a server
CLOCK_EVERY_S = 60.0


class Drain:
    """
    Empties this process's spool, and what dead processes left in its folder.

    SQLAlchemy and the driver are imported here, when there is the first thing to store.

    Args:
        spool: this process's own; None in a server, which only takes over.
        folder: the spool folder.
        say: gets one line for each error that was stored.
    """

    def __init__(
        self, settings: Settings, spool: Spool | None, folder: Path, say: Callable[[str], None] | None = None
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._folder = folder
        self._say = say
        self._store: Store | None = None
        self._is_prepared = False
        self._segments: dict[Path, _Segment] = {}
        self._orphans: list[Orphan] = []
        self._behind = timedelta(0)
        self._source: decoding.Source | None = None  # of this process's own errors
        self._told_lost = 0
        self._has_complained = False
        self._next_clock = self._next_adoption = 0.0
        self._signal = allocate_lock()
        self._signal.acquire()
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="tocsin-drain", daemon=True)
        self.away_since: float | None = None  # monotonic; None while the database answers
        self.stored = 0

    def start(self) -> None:
        """Start the thread; it lives as long as the process."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to store; safe from a signal handler, never waits."""
        if self._signal.locked():
            with suppress(RuntimeError):  # someone else was quicker
                self._signal.release()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all of this process's errors are stored; False when the time is over."""
        deadline = time.monotonic() + timeout_s
        while self._has_own_left():
            if time.monotonic() >= deadline:
                return False
            self.wake()
            time.sleep(0.01)
        return True

    def finish(self, timeout_s: float) -> bool:
        """
        Store what is left and end the thread.

        Args:
            timeout_s: the most to wait; much less while the database is known to be away.

        Returns:
            Whether all of this process's errors are stored; else they wait in the spool.
        """
        timeout_s = min(timeout_s, 0.3) if self.away_since is not None else timeout_s
        self._deadline = time.monotonic() + timeout_s
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 0.2)
        return not self._thread.is_alive() and not self._has_own_left()

    def _run(self) -> None:
        own_threads.add(threading.get_ident())
        failed = 0
        try:
            while True:
                is_last = self._deadline is not None
                is_storming = False
                try:
                    is_storming = self._round()
                    failed = 0
                    self._note_back()
                except Overtaken:
                    continue  # asks how far it is stored
                except (StoreAway, SchemaMismatch) as problem:
                    failed += 1
                    self._note_away(problem)
                except Exception as problem:
                    failed += 1
                    self._forget_positions()
                    note("storing errors", problem)
                if is_last and (not failed or time.monotonic() >= (self._deadline or 0)):
                    return
                if failed:
                    pause_s = RETRY_S[min(failed, len(RETRY_S)) - 1]
                    time.sleep(pause_s) if self._deadline is None else time.sleep(0.05)
                else:
                    idle_s = SERVER_ADOPTS_EVERY_S if self._spool is None else IDLE_S
                    self._signal.acquire(timeout=STORM_S if is_storming else idle_s)
        finally:
            for orphan in self._orphans:
                orphan.release(everything_stored=False)
            if self._store is not None:
                self._store.close_now()
            own_threads.discard(threading.get_ident())

    def _round(self) -> bool:
        """Store all there is; True while a storm is being counted."""
        is_storming = False
        if self._spool is not None:
            is_storming = self._spool.flush_counts()
            if self._spool.lost and not self._has_complained:
                self._has_complained = True
                _complain(f"tocsin: {self._folder} is full, or its disk is: errors are only counted")
            self._store_own(self._spool)
            self._tell_losses(self._spool)
        if time.monotonic() >= self._next_adoption and self._deadline is None:
            self._next_adoption = time.monotonic() + (SERVER_ADOPTS_EVERY_S if self._spool is None else ADOPT_EVERY_S)
            self._orphans += spooling.adopt_orphans(self._folder)
            if self._spool is not None:
                self._spool.refresh()
        self._store_orphans()
        return is_storming

    def _tell_losses(self, spool: Spool) -> None:
        """What could only be counted stands in the instance's row, also when nothing else is stored."""
        lost = spool.lost
        if lost > self._told_lost and self._source is not None:
            from tocsin.store import errors  # noqa: PLC0415

            instance = self._report(self._source.instance, None)
            self._ready_store().write_now(errors.write_instance, instance, clock.now() + self._behind)
            self._told_lost = lost

    def _store_own(self, spool: Spool) -> None:
        for path in spool.segments():
            segment = self._segments.setdefault(path, _Segment(path, position=0))
            is_final = not spool.is_open(path)
            while self._store_some(segment, is_final=is_final):
                pass
            self._source = segment.source or self._source
            if is_final and segment.position == path.stat().st_size and spool.remove(path):
                del self._segments[path]

    def _store_orphans(self) -> None:
        """One that cannot be read holds up no other."""
        for orphan in list(self._orphans):
            try:
                for path in orphan.segments():
                    segment = _Segment(path, position=None, orphan=orphan)
                    while self._store_some(segment, is_final=True):
                        pass
            except (StoreAway, SchemaMismatch, Overtaken):
                raise
            except Exception as problem:
                note(f"storing what {orphan.stem} left", problem)
                continue
            self._orphans.remove(orphan)
            orphan.release(everything_stored=True)

    def _store_some(self, segment: _Segment, *, is_final: bool) -> bool:
        """Store the next lines of a segment; False when there are none."""
        if segment.source is None:
            head = spooling.read_segment(segment.path, max_bytes=spooling.LINE_BYTES)
            if not head:
                return False
            segment.source = decoding.Source.of(head[0].content or {})
        if segment.position is None:
            segment.position = self._stored_position(segment)
        lines = spooling.read_segment(segment.path, segment.position, max_bytes=BATCH_BYTES, is_final=is_final)
        if not lines:
            return False
        if segment.position == 0 and len(lines) == 1 and not is_final:
            return False  # only the header yet: nothing that is worth a connection
        lines = lines[:BATCH_LINES]
        self._ready_store()  # measures the clock, which decoding corrects
        decoded = [(line, self._decode(line, segment.source)) for line in lines]
        instance = self._report(segment.source.instance, segment.orphan)
        self._write(segment, decoded, instance)
        return True

    def _report(self, instance: Instance, orphan: Orphan | None) -> Instance:
        """What is known of the process that the lines are from, now."""
        if orphan is not None:
            return replace(instance, lost=orphan.lost, is_alive=False)
        assert self._spool is not None
        return replace(
            instance, memory_bytes=resident_bytes(), spool_bytes=self._spool.folder_bytes, lost=self._spool.lost
        )

    def _decode(self, line: Line, source: decoding.Source) -> Entry | None:
        try:
            if line.content is None:
                raise ValueError("the line cannot be read")
            return decoding.decode(
                line.content,
                source,
                own_categories=self._settings.categories,
                capture_4xx=self._settings.capture_4xx,
                behind=self._behind,
            )
        except Exception as problem:
            failures["reading a spool line"] += 1
            spooling.set_aside(self._folder, line.raw, f"{type(problem).__name__}: {problem}")
            return None

    def _write(self, segment: _Segment, decoded: list[tuple[Line, Entry | None]], instance: Instance) -> None:
        """Store lines and how far they go; a batch that is refused is split until the bad one is alone."""
        from tocsin.store import errors  # noqa: PLC0415  (SQLAlchemy comes with the first error)

        store = self._ready_store()
        batch = Batch(
            entries=[entry for _, entry in decoded if entry is not None],
            instance=instance,
            segment=segment.name,
            start=segment.position or 0,
            position=decoded[-1][0].end,
        )
        try:
            stored = store.write_now(errors.write_batch, batch, clock.now() + self._behind)
        except (StoreAway, Overtaken):
            segment.position = None  # it may have been committed all the same, or by another: ask
            raise
        except Exception as problem:
            if len(batch.entries) > 1:
                middle = len(decoded) // 2
                self._write(segment, decoded[:middle], instance)
                self._write(segment, decoded[middle:], instance)
                return
            self._write_alone(segment, decoded, instance, problem)
            return
        segment.position = batch.position
        self._tell(stored)

    def _write_alone(
        self, segment: _Segment, decoded: list[tuple[Line, Entry | None]], instance: Instance, problem: Exception
    ) -> None:
        """One entry that the database refuses: without its context, else not at all, but set aside."""
        line, entry = next((pair for pair in decoded if pair[1] is not None), (decoded[-1][0], None))
        if entry is None:
            raise problem  # it is not about the data
        if isinstance(entry, ErrorRecord) and "tocsin.left_out" not in entry.context:
            self._write(segment, [(decoded[-1][0], _harmless(entry, problem))], instance)
            return
        failures["storing an error that the database refuses"] += 1
        spooling.set_aside(self._folder, line.raw, f"{type(problem).__name__}: {problem}")
        self._write(segment, [(decoded[-1][0], None)], instance)

    def _ready_store(self) -> Store:
        if self._store is None:
            from tocsin.store import open_store  # noqa: PLC0415

            self._store = open_store(self._settings.database_url)
        if not self._is_prepared:
            from tocsin.store import migrate  # noqa: PLC0415

            migrate.prepare_now(self._store)
            self._is_prepared = True
        if time.monotonic() >= self._next_clock:
            self._behind = _clock_difference(self._store)
            self._next_clock = time.monotonic() + CLOCK_EVERY_S
        return self._store

    def _stored_position(self, segment: _Segment) -> int:
        store = self._ready_store()
        from tocsin.store import errors  # noqa: PLC0415

        return store.read_now(errors.progress, [segment.name]).get(segment.name, 0)

    def _tell(self, stored: list[Stored]) -> None:
        self.stored += len(stored)
        if self._say is None:
            return
        for one in stored:
            with contained("saying what was stored"):
                self._say(f"{one.severity.upper()} {one.category} #{one.number} {one_line(one.title)}")

    def _note_away(self, problem: Exception) -> None:
        self._forget_positions()
        self._is_prepared = False
        if self.away_since is None:
            self.away_since = time.monotonic()
            _complain(f"tocsin: the database is away, errors wait in {self._folder}: {problem}")

    def _note_back(self) -> None:
        if self.away_since is not None:
            _complain(f"tocsin: the database is back after {time.monotonic() - self.away_since:.0f} s")
            self.away_since = None

    def _forget_positions(self) -> None:
        for segment in self._segments.values():
            segment.position = None

    def _has_own_left(self) -> bool:
        if self._spool is None:
            return False
        if self._spool.lost > self._told_lost:
            return True
        for path in self._spool.segments():
            segment = self._segments.get(path)
            position = segment.position if segment else None
            with suppress(OSError):
                size = path.stat().st_size
                is_header_only = not position and len(spooling.read_segment(path, max_bytes=size + 1)) <= 1
                if position != size and not is_header_only:
                    return True
        return False


@dataclass(slots=True)
class _Segment:
    path: Path
    position: int | None  # None: the database knows
    orphan: Orphan | None = None  # whose it was
    source: decoding.Source | None = None

    @property
    def name(self) -> str:
        return self.path.stem


@contextmanager
def adopting(settings: Settings) -> Iterator[Drain]:
    """Store what dead processes left in the spool folder of this machine, for as long as this lasts."""
    folder = Path(settings.spool_dir)
    drain = Drain(settings, None, folder)
    drain.start()
    try:
        yield drain
    finally:
        drain.finish(2.0)


def resident_bytes() -> int | None:
    """The resident memory of this process in bytes; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _clock_difference(store: Store) -> timedelta:
    """What to add to this machine's clock to get the database's; zero for what a round trip explains."""
    if store.dialect == "sqlite":
        return timedelta(0)
    from tocsin.store import leases  # noqa: PLC0415

    before = clock.now()
    theirs = store.read_now(leases.database_now)
    after = clock.now()
    difference = theirs - (before + (after - before) / 2)
    return difference if abs(difference) > max(after - before, timedelta(seconds=1)) else timedelta(0)


def _harmless(entry: ErrorRecord, problem: Exception) -> ErrorRecord:
    def cleaned(value: Any) -> Any:
        return clean(value, 256 * 1024) if isinstance(value, str) else value

    return replace(
        entry,
        message=cleaned(entry.message),
        stack=cleaned(entry.stack),
        title=cleaned(entry.title),
        culprit=cleaned(entry.culprit),
        exception_type=cleaned(entry.exception_type),
        context={"tocsin.left_out": clean(f"the database refused it: {type(problem).__name__}")},
    )


def _complain(text: str) -> None:
    with suppress(Exception):
        sys.stderr.write(one_line(text, 500) + "\n")
