"""
The other processes of this machine that are watched, as they say themselves that they are.

A service need not open the database to be shown truly: it writes to memory, and the server reads it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tocsin.exporter import spool as spooling
from tocsin.exporter.database import Database
from tocsin.exporter.decode import Source
from tocsin.exporter.life import LastWords, State
from tocsin.exporter.spool import Living
from tocsin.model import Instance

LOOK_EVERY_S: Final = 2.0
WRITE_EVERY_S: Final = 15.0
"""How old the row of a process may become in which nothing changes but its memory."""
MOST: Final = 500
"""How many processes are looked at."""


class Neighbours:
    """
    Keeps their rows true; used by one thread, which calls `look` again and again.

    Args:
        folder: their spool folder.
        look_every_s: how often a call does anything.
    """

    def __init__(self, folder: Path, sink: Database, look_every_s: float = LOOK_EVERY_S) -> None:
        self._folder = folder
        self._sink = sink
        self._look_every_s = look_every_s
        self._known: dict[str, _Known] = {}  # by stem
        self._next_look = 0.0

    def look(self) -> None:
        """Read how the living are, and write what is new; keeps its own pace."""
        moment = time.monotonic()
        if moment < self._next_look:
            return
        self._next_look = moment + self._look_every_s
        found = {one.stem: one for one in spooling.living(self._folder, MOST)}
        changed = []
        for stem, one in found.items():
            known = self._known.setdefault(stem, _Known())
            if known.instance is None:
                known.instance = self._who(stem)
            if known.instance is not None and known.is_due(one.words, moment):
                changed.append(_as_it_is(known.instance, one))
        gone = [stem for stem in self._known.keys() - found.keys() if not self._is_left(stem)]
        ended = [instance.id for stem in gone if (instance := self._known[stem].instance) is not None]
        if changed or ended:
            self._sink.keep(changed, ended)
        for stem, one in found.items():
            self._known[stem].note(one.words, moment)
        for stem in gone:
            del self._known[stem]

    def _who(self, stem: str) -> Instance | None:
        segments = sorted(self._folder.glob(f"{stem}.*.seg"))
        header = spooling.header_of(segments)
        return Source.of(header).instance if header is not None else None

    def _is_left(self, stem: str) -> bool:
        """Whether its files are there: it is for who takes them over to say how it ended."""
        return (self._folder / f"{stem}.live").exists()


@dataclass(slots=True)
class _Known:
    instance: Instance | None = None  # None: not a service's, or not known yet
    words: LastWords | None = None  #   as they were written last
    written: float = 0.0  #             monotonic

    def is_due(self, words: LastWords, moment: float) -> bool:
        if words.state not in (State.ALIVE, State.UNMARKED):
            return False  # it is ending
        return self.words is None or _shown(words) != _shown(self.words) or moment >= self.written + WRITE_EVERY_S

    def note(self, words: LastWords, moment: float) -> None:
        if self.is_due(words, moment):
            self.words, self.written = words, moment


def _shown(words: LastWords) -> tuple[int, bool]:
    return words.active_requests, words.stopping_ns > 0


def _as_it_is(instance: Instance, now: Living) -> Instance:
    return replace(
        instance,
        memory_bytes=now.words.memory_bytes or None,
        active_requests=now.words.active_requests,
        is_shutting_down=now.words.stopping_ns > 0,
        loop_lag_ms=now.words.loop_lag_ms,
        memory_limit_bytes=now.words.memory_limit_bytes,
        memory_trend=now.words.memory_trend,
        lost=now.lost,
    )
