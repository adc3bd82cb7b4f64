"""
The thread that empties the spool: into the database, or to a server.

It keeps no promise in memory: how far a segment was read is kept by the sink, with what was read, so a
crash, a lost connection or a second reader count nothing twice and lose nothing.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tocsin import clock
from tocsin.contained import contained, note, own_threads
from tocsin.exporter import spool as spooling
from tocsin.exporter.life import LastWords, State
from tocsin.exporter.spool import Orphan, Spool
from tocsin.failures import Overtaken, SchemaMismatch, ServerRefuses, StoreAway, TableMissing
from tocsin.loading import loading
from tocsin.model import Instance
from tocsin.settings import Settings
from tocsin.text import one_line

# What reads, classifies and stores an error is loaded by the thread, at the first error or when the program has
# had time to start: it takes as long as all the rest of tocsin.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from tocsin.exporter.decode import Source
    from tocsin.exporter.sink import Sink

BATCH_LINES = 2500
BATCH_BYTES = 2 * 2**20
IDLE_S = 1.0
FIRST_LOOK_S = 1.0  # a program that starts has other things to do; its first error wakes the thread
GATHER_S = 0.1  # after something was stored: what comes in the meantime is stored together
STORM_S = 0.25
STOPPING_S = 0.25  # a process that may be killed soon
RETRY_S = (0.25, 0.5, 1.0, 2.0)
LONGEST_PAUSE_S = 60.0  # whatever a server asks for
CHANGED_S = 10.0  # between two words of a process whose requests come and go
BEAT_AGAIN_S = 15.0  # a word that did not get through shall not leave it silent for two of them
ALONE_S = (2.0, 6.0)  # before a process speaks for itself that was spoken for: many shall not begin at once
ADOPT_EVERY_S = 2.0
FEW = 3  # errors of others that are told one by one
SERVER_ADOPTS_EVERY_S = 0.5  # the last error of a service that died rings by way of a server


class Drain:
    """
    Empties this process's spool, and what dead processes left in its folder.

    Args:
        spool: this process's own; None for who only takes over.
        folder: the spool folder.
        say: gets one line for each error that was put.
        sink: where it is put (default: what the settings name).
        chores: what else is done in this thread, about twice a second and between two batches; each keeps its
            own pace.
        farewell: what is done last in this thread, while the sink answers.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool | None,
        folder: Path,
        say: Callable[[str], None] | None = None,
        *,
        sink: Sink | None = None,
        chores: Sequence[Callable[[], None]] = (),
        farewell: Callable[[], None] | None = None,
        adopt_every_s: float = ADOPT_EVERY_S,
    ) -> None:
        self._spool = spool
        self._folder = folder
        self._say = say
        self._settings = settings
        self._given_sink = sink
        self._sink: Sink  # made by the thread
        self._is_loaded = False
        self._chores = chores
        self._farewell = farewell
        self._adopt_every_s = adopt_every_s
        self._segments: dict[Path, _Segment] = {}
        self._orphans: list[Orphan] = []
        self._watched: dict[str, float] = {}  # what is left to those who have seen how it ended
        self._adopted: list[str] = []  # the first of theirs that are put, and not told yet
        self._adopted_count = 0
        self._source: Source | None = None  # of this process's own errors
        self._told_lost = 0
        self._has_complained = False
        self._has_stored = False  # in this round
        self._told: tuple[int, bool] | None = None  # of this process: requests, and whether it stops
        self._complained_of: type[Exception] | None = None  # why the sink takes nothing, as it was said last
        self._next_adoption = 0.0
        self._began = self._next_beat = time.monotonic()
        self._alone_at: float | None = 0.0  # since when this process speaks for itself; None: somebody else does
        self._random = random.Random()  # of its own: a user's `random.seed` is the user's
        self._signal = allocate_lock()
        self._signal.acquire()
        self._deadline: float | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tocsin-drain", daemon=True)
        self._all_stored_at = time.monotonic()
        self.away_since: float | None = None  # monotonic; None while the sink answers
        self.stored = 0

    def start(self) -> None:
        """Start the thread; it lives as long as the process."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to store; safe from a signal handler, never waits."""
        if self._signal.locked():
            with suppress(RuntimeError):  # someone else was quicker
                self._signal.release()

    @property
    def behind_s(self) -> float:
        """How long ago all that was there was stored."""
        return time.monotonic() - self._all_stored_at

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
            timeout_s: the most to wait; much less while the database or the server is known to be away.

        Returns:
            Whether all of this process's errors are stored; else they wait in the spool.
        """
        timeout_s = min(timeout_s, 0.3) if self.away_since is not None else timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._ending.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 0.2)
        return not self._thread.is_alive() and not self._has_own_left()

    def _run(self) -> None:
        own_threads.add(threading.get_ident())
        try:
            if self._is_needed():
                self._load()
                self._go_on()
        finally:
            for orphan in self._orphans:
                orphan.release(everything_stored=False)
            with contained("closing"):
                if self._is_loaded:
                    self._sink.close()
            own_threads.discard(threading.get_ident())

    def _is_needed(self) -> bool:
        """Wait for the first thing to do; False where the program has ended before there was any."""
        if self._spool is not None:
            self._signal.acquire(timeout=FIRST_LOOK_S)
        return self._deadline is None or self._has_own_left()

    def _load(self) -> None:
        with loading():
            from tocsin.exporter import orphans  # noqa: F401

            self._sink = self._given_sink or sink_of(self._settings, self._folder)
        self._next_beat = self._began + self._sink.first_beat_s * self._random.uniform(1.0, 1.2)
        self._is_loaded = True

    def _go_on(self) -> None:
        """Round after round, until it is to end."""
        failed = 0
        while True:
            is_last = self._deadline is not None
            is_storming = False
            pause_s = None
            try:
                is_storming = self._round()
                failed = 0
                self._note_back()
            except Overtaken:
                continue  # asks how far it is stored
            except (StoreAway, SchemaMismatch) as problem:
                failed += 1
                pause_s = problem.pause_s if isinstance(problem, StoreAway) else None
                self._note_away(problem)
            except Exception as problem:
                failed += 1
                self._forget_positions()
                note("storing errors", problem)
            if self._is_over() if failed else is_last:
                if not failed:
                    self._take_leave()
                    if self._farewell is not None:
                        self._farewell()
                return
            if failed and is_last:
                time.sleep(0.05)
            elif failed:
                self._ending.wait(self._pause_s(failed, pause_s))
            else:
                if self._has_stored:
                    self._ending.wait(GATHER_S)
                self._signal.acquire(timeout=STORM_S if is_storming else min(self._idle_s(), self._adopt_every_s))

    def _is_over(self) -> bool:
        """Whether there is no time left for another try."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _pause_s(self, failed: int, wished_s: float | None) -> float:
        """How long to wait after so many failures: many processes shall not come back at the same moment."""
        pause_s = max(RETRY_S[min(failed, len(RETRY_S)) - 1], wished_s or 0.0)
        return min(pause_s * self._random.uniform(1.0, 1.25), LONGEST_PAUSE_S)

    def _idle_s(self) -> float:
        """How long there may be nothing to do."""
        return STOPPING_S if self._spool is not None and self._spool.life.is_stopping else IDLE_S

    def _round(self) -> bool:
        """Store all there is; True while a storm is being counted."""
        is_storming = self._has_stored = False
        if time.monotonic() >= self._next_adoption and self._deadline is None:
            self._next_adoption = time.monotonic() + self._adopt_every_s
            from tocsin.exporter import orphans

            self._orphans += orphans.adopt(self._folder, self._watched)
            if self._spool is not None:
                self._spool.refresh()
        # Before what is newer: a server that was killed may have left an error of which the next one has got
        # more since, and what is said of an error that is not there yet is left out.
        self._store_orphans()
        if self._spool is not None:
            is_storming = self._spool.flush_counts()
            if self._spool.lost and not self._has_complained:
                self._has_complained = True
                _complain(f"tocsin: {self._folder} is full, or its disk is: errors are only counted")
            self._store_own(self._spool)
            self._tell_losses(self._spool)
        self._all_stored_at = time.monotonic()
        if self._deadline is None:
            self._beat()
            self._do_chores()
        return is_storming

    def _do_chores(self) -> None:
        if self._deadline is None:
            for chore in self._chores:
                chore()

    def _tell_losses(self, spool: Spool) -> None:
        """What could only be counted stands in the instance's row, also when nothing else is stored."""
        lost = spool.lost
        if lost > self._told_lost and self._source is not None and self._source.instance is not None:
            self._sink.report(self._report(self._source.instance, None))
            self._told_lost = lost

    def _beat(self) -> None:
        """
        Tell that this process lives, also when nothing goes wrong in it.

        A sink that is away is not worth a word while there is nothing to send; one that will take
        nothing is, since that is better known before the first error.
        """
        every_s = self._sink.beats_every_s
        if every_s is None or self._source is None or self._source.instance is None:
            return
        if not self._is_due(every_s) or not self._is_alone():
            return
        self._next_beat = time.monotonic() + every_s * self._random.uniform(0.9, 1.0)
        try:
            self._sink.report(self._report(self._source.instance, None))
        except (ServerRefuses, SchemaMismatch, TableMissing) as problem:
            self._complain_away(problem)
        except StoreAway:
            self._next_beat = time.monotonic() + min(every_s, BEAT_AGAIN_S)
        else:
            self._complained_of = None
            if not self._has_stored:
                self._sink.rest()

    def _is_alone(self) -> bool:
        """Whether nobody else tells how this process is; a server that is started anew is back within seconds."""
        if self._sink.is_told_by_others():
            self._alone_at = None
            return False
        if self._alone_at is None:
            self._alone_at = time.monotonic() + self._random.uniform(*ALONE_S)
        return time.monotonic() >= self._alone_at

    def _is_due(self, every_s: float) -> bool:
        """By the clock; sooner when its requests have come or gone, at once when this process was asked to stop."""
        left_s = self._next_beat - time.monotonic()
        if self._told is None or self._spool is None or left_s <= 0:
            return left_s <= 0
        words = self._spool.life.read()
        active, is_stopping = self._told
        return (words.stopping_ns > 0) != is_stopping or (
            words.active_requests != active and left_s <= every_s - CHANGED_S
        )

    def _take_leave(self) -> None:
        """The last word of a process that has a row: that it has ended, in order."""
        if self._spool is None or self._source is None or self._source.instance is None or self._told is None:
            return
        words = self._spool.life.read()
        if words.state not in (State.ALIVE, State.ENDED):
            return
        how = "stopped" if words.stopping_ns else "ended"
        instance = self._report(self._source.instance, None)
        with suppress(StoreAway, SchemaMismatch), contained("saying that this process has ended"):
            self._sink.report(replace(instance, is_shutting_down=False, ended_at=clock.now(), ended_how=how))

    def _store_own(self, spool: Spool) -> None:
        for path in spool.segments():
            segment = self._segments.setdefault(path, _Segment(path, position=0))
            is_final = not spool.is_open(path)
            while self._store_some(segment, is_final=is_final):
                if not is_final and not segment.has_more:
                    break  # what comes just now is worth waiting for
            self._source = segment.source or self._source
            if is_final and segment.position == path.stat().st_size and spool.remove(path):
                del self._segments[path]
                self._sink.forget(segment.name)

    def _store_orphans(self) -> None:
        """One that cannot be read holds up no other."""
        for orphan in list(self._orphans):
            try:
                self._store_orphan(orphan)
            except (StoreAway, SchemaMismatch, Overtaken):
                raise
            except Exception as problem:
                note(f"storing what {orphan.stem} left", problem)
                continue
            segments = orphan.segments()
            self._orphans.remove(orphan)
            orphan.release(everything_stored=True)
            for path in segments:
                self._sink.forget(path.stem)
        self._tell_adopted()

    def _store_orphan(self, orphan: Orphan) -> None:
        is_told = False
        source = None
        for path in orphan.segments():
            segment = _Segment(path, position=None, orphan=orphan)
            while self._store_some(segment, is_final=True):
                is_told = True
            source = segment.source
        if not is_told and source is not None and source.instance is not None:
            self._sink.report(self._report(source.instance, orphan))

    def _store_some(self, segment: _Segment, *, is_final: bool) -> bool:
        """Store the next lines of a segment; False when there are none."""
        from tocsin.exporter.decode import Source
        from tocsin.exporter.sink import Portion

        if segment.source is None:
            head = spooling.read_segment(segment.path, max_bytes=spooling.LINE_BYTES, max_lines=1)
            if not head:
                return False
            segment.source = Source.of(head[0].content or {})
        if segment.position is None:
            segment.position = self._sink.position(segment.name)
        lines = spooling.read_segment(
            segment.path, segment.position, max_bytes=BATCH_BYTES, max_lines=BATCH_LINES, is_final=is_final
        )
        if not lines:
            return False
        if segment.position == 0 and len(lines) == 1 and not is_final:
            return False  # only the header yet: nothing that is worth a connection
        source = segment.source
        instance = self._report(source.instance, segment.orphan) if source.instance is not None else None
        portion = Portion(segment=segment.name, start=segment.position, lines=lines, source=source, instance=instance)
        segment.position = None  # until it is known: some of it may be kept all the same, or by another
        stored = self._sink.put(portion)
        segment.has_more = len(lines) >= BATCH_LINES or portion.end - portion.start > BATCH_BYTES // 2
        segment.position = portion.end
        self._has_stored = True
        if segment.orphan is None and self._sink.beats_every_s is not None:
            self._next_beat = time.monotonic() + self._sink.beats_every_s  # it came with the errors
        self._do_chores()
        self.stored += len(stored)
        if segment.orphan is None:
            self._tell(stored)
        else:
            self._adopted += stored[: FEW - len(self._adopted)]
            self._adopted_count += len(stored)
        return True

    def _report(self, instance: Instance, orphan: Orphan | None) -> Instance:
        """What is known of the process that the lines are from, now."""
        if orphan is not None:
            ended_at = clock.from_ns(orphan.ended_ns) if orphan.ended_ns else None
            return replace(
                instance,
                lost=orphan.lost,
                is_alive=False,
                ended_at=instance.ended_at or ended_at,
                ended_how=instance.ended_how or orphan.how,
            )
        assert self._spool is not None
        words = self._spool.life.read()
        self._told = words.active_requests, words.stopping_ns > 0
        return replace(
            instance,
            memory_bytes=words.memory_bytes or None,
            active_requests=words.active_requests,
            is_shutting_down=words.stopping_ns > 0,
            spool_bytes=self._spool.folder_bytes,
            loop_lag_ms=words.loop_lag_ms,
            memory_limit_bytes=words.memory_limit_bytes,
            memory_trend=words.memory_trend,
            beats_every_s=self._promised_s(words),
            seen_at=clock.from_ns(words.seen_ns) if words.seen_ns else None,
            lost=self._spool.lost,
        )

    def _promised_s(self, words: LastWords) -> float | None:
        """How often this process will say how it is; one whose end nobody could make out promises nothing."""
        if self._sink.beats_every_s is None or words.state == State.ALIVE:
            return self._sink.beats_every_s
        return 0.0

    def _tell(self, stored: Sequence[str]) -> None:
        if self._say is None:
            return
        for line in stored:
            with contained("saying what was stored"):
                self._say(line)

    def _tell_adopted(self) -> None:
        """What others left is told in full where it is little: after an outage it may be a million errors."""
        adopted, count = self._adopted, self._adopted_count
        self._adopted, self._adopted_count = [], 0
        if count > FEW:
            adopted = [
                f"tocsin: {self._sink.name} now has {count:,} errors that ended processes left in {self._folder}"
            ]
        self._tell(adopted)

    def _note_away(self, problem: Exception) -> None:
        self._forget_positions()
        if self.away_since is None:
            self.away_since = time.monotonic()
        self._complain_away(problem)

    def _complain_away(self, problem: Exception) -> None:
        """Once for each kind of reason: a server that is back may be one that refuses the token."""
        if self._complained_of is not type(problem):
            self._complained_of = type(problem)
            is_there = isinstance(problem, ServerRefuses | SchemaMismatch | TableMissing)
            state = "takes nothing" if is_there else "is away"
            _complain(f"tocsin: {self._sink.name} {state}, errors wait in {self._folder}: {problem}")

    def _note_back(self) -> None:
        if self.away_since is not None:
            _complain(f"tocsin: {self._sink.name} is back after {time.monotonic() - self.away_since:.0f} s")
            self.away_since = None
            self._complained_of = None

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
    position: int | None  # None: the sink knows
    orphan: Orphan | None = None  # whose it was
    source: Source | None = None
    has_more: bool = False  #        behind what was read last

    @property
    def name(self) -> str:
        return self.path.stem


def sink_of(settings: Settings, folder: Path) -> Sink:
    """Where the settings say that errors go."""
    from tocsin.exporter.database import Database
    from tocsin.exporter.ship import Ship

    return Ship(settings, folder) if settings.endpoint else Database(settings, folder)


@contextmanager
def adopting(settings: Settings) -> Iterator[Drain]:
    """Store what dead processes leave in this machine's spool folder, and how the living are, while this lasts."""
    from tocsin.exporter import kept
    from tocsin.exporter.database import Database
    from tocsin.exporter.neighbours import Neighbours

    folder = Path(settings.spool_dir)
    sink = Database(settings, folder)
    neighbours = Neighbours(folder, sink, silent_after_s=settings.silent_after_s)
    drain = Drain(
        settings,
        None,
        folder,
        sink=sink,
        chores=(neighbours.look,),
        farewell=neighbours.leave,
        adopt_every_s=SERVER_ADOPTS_EVERY_S,
    )
    drain.start()
    try:
        yield drain
    finally:
        drain.finish(2.0)
        kept.leave(folder)


def _complain(text: str) -> None:
    with suppress(Exception):
        sys.stderr.write(one_line(text, 500) + "\n")
