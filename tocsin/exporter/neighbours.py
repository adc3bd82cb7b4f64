"""
The other processes of this machine that are watched, as they say themselves that they are.

A service need not open the database to be shown truly: it writes to memory, and the server reads it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tocsin import clock
from tocsin.contained import contained
from tocsin.exporter import kept
from tocsin.exporter import spool as spooling
from tocsin.exporter.database import Database
from tocsin.exporter.decode import Source
from tocsin.exporter.life import LastWords, State
from tocsin.exporter.spool import Living
from tocsin.failures import SchemaMismatch, StoreAway
from tocsin.model import Instance

LOOK_EVERY_S: Final = 2.0
WRITE_EVERY_S: Final = 15.0
"""How old the row of a process may become in which nothing changes but its memory, at the most."""
_SHARE: Final = 2.5  # of the time after which a process is taken for silent: one row may be late
MOST: Final = 500
"""How many processes are looked at; where there are more, nobody promises anything of any of them."""


class Neighbours:
    """
    Keeps their rows true; used by one thread, which calls `look` again and again.

    Args:
        folder: their spool folder.
        silent_after_s: when a process is taken for silent of which nothing is heard.
        look_every_s: how often a call does anything.
    """

    def __init__(
        self,
        folder: Path,
        sink: Database,
        *,
        silent_after_s: float = WRITE_EVERY_S * _SHARE,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._folder = folder
        self._sink = sink
        self._look_every_s = look_every_s
        self._write_every_s = min(WRITE_EVERY_S, silent_after_s / _SHARE)
        self._promised_s = self._write_every_s
        self._known: dict[str, _Known] = {}  # by stem
        self._kept: dict[str, str] | None = None  # ids of instances by stem, as the next server finds them
        self._next_look = 0.0

    def look(self) -> None:
        """Read how the living are, and write what is new; keeps its own pace."""
        moment = time.monotonic()
        if moment < self._next_look:
            return
        self._next_look = moment + self._look_every_s
        if self._kept is None:
            self._kept = kept.read(self._folder)
            kept.write(self._folder, self._kept)
        found = {one.stem: one for one in spooling.living(self._folder, MOST)}
        if len(found) >= MOST and self._promised_s:
            self._promised_s = 0.0
            self.leave()
        due = []
        for stem, one in found.items():
            known = self._known.setdefault(stem, _Known())
            if known.instance is None:
                known.instance = self._who(stem)
            if known.instance is not None and known.is_due(one.words, moment, self._write_every_s):
                due.append(stem)
        gone = [stem for stem in self._kept.keys() | self._known if stem not in found and not self._is_left(stem)]
        ids = self._kept | {stem: one.instance.id for stem, one in self._known.items() if one.instance is not None}
        # A process whose files were deleted goes on under another name.
        ended = {ids[stem] for stem in gone if stem in ids} - {ids[stem] for stem in found if stem in ids}
        if due or ended:
            spool_bytes = spooling.folder_bytes(self._folder)
            self._sink.keep([self._as_it_is(found[stem], spool_bytes) for stem in due], sorted(ended))
        for stem in due:
            self._known[stem].note(found[stem].words, moment)
        for stem in gone:
            self._known.pop(stem, None)
            ids.pop(stem, None)
        if ids != self._kept:
            self._kept = ids
            kept.write(self._folder, ids)
        kept.touch(self._folder)

    def leave(self) -> None:
        """At the end of this server: nobody promises any more that the rows are made anew, unless another does."""
        with suppress(StoreAway, SchemaMismatch), contained("leaving the rows of processes"):
            self._sink.let_go(sorted(one.instance.id for one in self._known.values() if one.instance is not None))

    def _who(self, stem: str) -> Instance | None:
        segments = sorted(self._folder.glob(f"{stem}.*.seg"))
        header = spooling.header_of(segments)
        return Source.of(header).instance if header is not None else None

    def _is_left(self, stem: str) -> bool:
        """Whether its files are there: it is for who takes them over to say how it ended."""
        return (self._folder / f"{stem}.live").exists()

    def _as_it_is(self, now: Living, spool_bytes: int) -> Instance:
        instance, words = self._known[now.stem].instance, now.words
        assert instance is not None
        return replace(
            instance,
            memory_bytes=words.memory_bytes or None,
            active_requests=words.active_requests,
            is_shutting_down=words.stopping_ns > 0,
            spool_bytes=spool_bytes,
            loop_lag_ms=words.loop_lag_ms,
            memory_limit_bytes=words.memory_limit_bytes,
            memory_trend=words.memory_trend,
            beats_every_s=self._promised_s if words.state == State.ALIVE else 0.0,
            seen_at=clock.from_ns(words.seen_ns) if words.seen_ns else None,
            lost=now.lost,
        )


@dataclass(slots=True)
class _Known:
    instance: Instance | None = None  # None: not a service's, or not known yet
    words: LastWords | None = None  #   as they were written last
    written: float = 0.0  #             monotonic

    def is_due(self, words: LastWords, moment: float, every_s: float) -> bool:
        if self.words is None:
            return words.state in (State.ALIVE, State.UNMARKED)
        if _shown(words) != _shown(self.words):
            return True
        is_stopped = words.seen_ns > 0 and words.seen_ns == self.words.seen_ns  # it says nothing new
        return moment >= self.written + every_s and not is_stopped and words.state in (State.ALIVE, State.UNMARKED)

    def note(self, words: LastWords, moment: float) -> None:
        self.words, self.written = words, moment


def _shown(words: LastWords) -> tuple[int, bool, bool]:
    return words.active_requests, words.stopping_ns > 0, words.state == State.ALIVE
