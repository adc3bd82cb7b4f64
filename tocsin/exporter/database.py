"""The database as a sink: lines are decoded and stored, with how far they go, in one transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tocsin import clock
from tocsin.contained import failures
from tocsin.exporter import decode as decoding
from tocsin.exporter import kept
from tocsin.exporter import spool as spooling
from tocsin.exporter.brief import Briefs
from tocsin.exporter.sink import Portion
from tocsin.exporter.spool import Line
from tocsin.exporter.throttle import Throttle
from tocsin.failures import Overtaken, StoreAway
from tocsin.loading import loading
from tocsin.model import Batch, Entry, ErrorRecord, Fact, Instance, Stored
from tocsin.settings import Settings
from tocsin.text import clean, one_line

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tocsin.store import Store

CLOCK_EVERY_S = 60.0
BEATS_EVERY_S = 30.0

_Decoded = tuple[Line, Entry | Fact | Instance | None]


class Database:
    """
    The database that the settings name.

    SQLAlchemy and the driver are imported here, when there is the first thing to store.

    Args:
        folder: the spool folder, where lines are set aside that cannot be stored.
        briefs: gets to know which errors only count.
    """

    name = "the database"
    first_beat_s: float = 60.0  # SQLAlchemy takes 30 MB, which a program that ends soon need not load

    def __init__(self, settings: Settings, folder: Path, briefs: Briefs | None = None) -> None:
        self._settings = settings
        self._folder = folder
        # Who writes to a file has a server beside it, if there is one: that sees how it is.
        self.beats_every_s: float | None = None if settings.database_url.startswith("sqlite") else BEATS_EVERY_S
        self._store: Store | None = None
        self._is_prepared = False
        self._behind = timedelta(0)
        self._next_clock = 0.0
        self._known = decoding.Known()
        self._throttle = Throttle()
        self._briefs = briefs

    def position(self, segment: str) -> int:
        """Up to which byte a segment is stored; asked anew after every failure."""
        self._is_prepared = False
        store = self._ready()
        from tocsin.store import errors  # noqa: PLC0415  (SQLAlchemy comes with the first error)

        stored = store.read_now(errors.progress, [segment]).get(segment)
        # Its process may have sent it to a server, which may be this one.
        return spooling.acknowledged(self._folder, segment) if stored is None else stored

    def put(self, portion: Portion) -> list[str]:
        """Decode and store some lines; a batch that is refused is split until the bad line is alone."""
        self._ready()  # measures the clock, which decoding corrects
        decoded = [(line, self._decode(line, portion.source)) for line in portion.lines]
        return [_as_line(one) for one in self._write(portion, portion.start, decoded)]

    def store(self) -> Store:
        """The store, prepared, for what else is done in the thread that uses this; may raise as `put` does."""
        return self._ready()

    def report(self, instance: Instance) -> None:
        """Refresh the row of a process."""
        store = self._ready()
        from tocsin.store import errors  # noqa: PLC0415

        store.write_now(errors.write_instance, self._by_its_clock(instance), clock.now() + self._behind)

    def is_told_by_others(self) -> bool:
        """Whether a server keeps the rows of this folder's processes."""
        return kept.is_kept(self._folder)

    def rest(self) -> None:
        """Close the connection: it is not worth one while nothing happens."""
        if self._store is not None:
            self._store.rest_now()

    def keep(self, living: Sequence[Instance], ended: Sequence[str]) -> None:
        """Refresh the rows of processes, and note of others by their ids that they have ended, at once."""
        store = self._ready()
        from tocsin.store import errors  # noqa: PLC0415

        def work(connection: Connection, now: datetime) -> None:
            for instance in living:
                errors.write_instance(connection, self._by_its_clock(instance), now)
            errors.note_ended(connection, ended, now)

        store.write_now(work, clock.now() + self._behind)

    def let_go(self, instance_ids: Sequence[str]) -> None:
        """Promise no more that the rows of these processes are made anew."""
        store = self._ready()
        from tocsin.store import errors  # noqa: PLC0415

        store.write_now(errors.promise_nothing, instance_ids)

    def _by_its_clock(self, instance: Instance) -> Instance:
        """With the time of this machine as the database has it."""
        return instance if instance.seen_at is None else replace(instance, seen_at=instance.seen_at + self._behind)

    def forget(self, segment: str) -> None:
        """What is known of a segment is swept when it is old."""

    def close(self) -> None:
        """Close the store, if one was opened."""
        if self._store is not None:
            self._store.close_now()

    def _ready(self) -> Store:
        if self._store is None:
            with loading():  # this may be a thread beside the program, which may fork
                from tocsin.store import errors, leases, migrate, open_store  # noqa: F401, PLC0415

                self._store = open_store(self._settings.database_url)
        if not self._is_prepared:
            from tocsin.store import migrate  # noqa: PLC0415

            migrate.prepare_now(self._store)
            self._is_prepared = True
        if time.monotonic() >= self._next_clock:
            self._behind = _clock_difference(self._store)
            self._next_clock = time.monotonic() + CLOCK_EVERY_S
        return self._store

    def _decode(self, line: Line, source: decoding.Source) -> Entry | Fact | Instance | None:
        try:
            if line.content is None:
                raise ValueError("the line cannot be read")
            return decoding.decode(
                line.content,
                source,
                own_categories=self._settings.categories,
                capture_4xx=self._settings.capture_4xx,
                behind=self._behind,
                known=self._known,
            )
        except Exception as problem:
            failures["reading a spool line"] += 1
            spooling.set_aside(self._folder, line.raw, f"{type(problem).__name__}: {problem}")
            return None

    def _write(self, portion: Portion, start: int, decoded: Sequence[_Decoded]) -> list[Stored]:
        from tocsin.store import errors  # noqa: PLC0415

        store = self._ready()
        found = [entry for _, entry in decoded if entry is not None]
        sifted = self._throttle.sift(
            [entry for entry in found if not isinstance(entry, Instance | Fact)],
            time.monotonic(),
            lambda group_ids: store.read_now(errors.known_groups, group_ids),
        )
        batch = Batch(
            entries=sifted.entries,
            instance=self._by_its_clock(portion.instance) if portion.instance is not None else None,
            instances=[entry for entry in found if isinstance(entry, Instance)],
            facts=[entry for entry in found if isinstance(entry, Fact)],
            segment=portion.segment,
            start=start,
            position=decoded[-1][0].end,
        )
        try:
            stored = store.write_now(errors.write_batch, batch, clock.now() + self._behind)
        except (StoreAway, Overtaken):
            raise
        except Exception as problem:
            if len(found) > 1:
                middle = len(decoded) // 2
                first = self._write(portion, start, decoded[:middle])
                return first + self._write(portion, decoded[middle - 1][0].end, decoded[middle:])
            return self._write_alone(portion, start, decoded, problem)
        self._throttle.keep(sifted)
        if self._briefs is not None:
            for kind, verdict in self._throttle.verdicts(sifted):
                self._briefs.tell(kind, verdict)
        return stored

    def _write_alone(
        self, portion: Portion, start: int, decoded: Sequence[_Decoded], problem: Exception
    ) -> list[Stored]:
        """One entry that the database refuses: without its context, else not at all, but set aside."""
        line, entry = next((pair for pair in decoded if pair[1] is not None), (decoded[-1][0], None))
        if entry is None:
            raise problem  # it is not about the data
        if isinstance(entry, ErrorRecord) and "tocsin.left_out" not in entry.context:
            return self._write(portion, start, [(decoded[-1][0], _harmless(entry, problem))])
        failures["storing an error that the database refuses"] += 1
        spooling.set_aside(self._folder, line.raw, f"{type(problem).__name__}: {problem}")
        return self._write(portion, start, [(decoded[-1][0], None)])


def _as_line(one: Stored) -> str:
    return f"{one.severity.upper()} {one.category} #{one.number} {one_line(one.title)}"


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
