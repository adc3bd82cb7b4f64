"""Where the drain puts what it has read: the database, or a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tocsin.exporter.decode import Source
from tocsin.exporter.spool import Line
from tocsin.model import Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Some lines of a segment, one after the other; at least one."""

    segment: str
    start: int  #                 the byte where they begin, which is how far the segment was put before
    lines: Sequence[Line]
    source: Source  #             whose they are, unless a line says otherwise
    instance: Instance | None  #  how that process is now; None where the lines have no process of their own

    @property
    def end(self) -> int:
        """The byte after the last line."""
        return self.lines[-1].end


class Sink(Protocol):
    """
    Keeps lines for good, each once; used by one thread.

    Every call may raise `StoreAway` (then nothing of it was kept, or some, or all: `position` tells),
    and `SchemaMismatch`.
    """

    name: str  # as people call it: "the database"
    beats_every_s: float | None  # how often it wants to hear of a process that has nothing to put; None: never
    first_beat_s: float  #         when it wants to hear of one that has just begun

    def position(self, segment: str) -> int:
        """Up to which byte a segment is kept."""
        ...

    def put(self, portion: Portion) -> list[str]:
        """
        Keep lines and how far they go, all or nothing; what is refused for good is set aside.

        Returns:
            A line for stderr for each error that was kept.

        Raises:
            Overtaken: somebody else has put some of it.
        """
        ...

    def report(self, instance: Instance) -> None:
        """Tell how a process is, when there is nothing else to put."""
        ...

    def is_told_by_others(self) -> bool:
        """Whether it hears of this process from somebody else just now."""
        ...

    def rest(self) -> None:
        """There will be nothing to put for some time."""
        ...

    def forget(self, segment: str) -> None:
        """A segment is put to its end and deleted."""
        ...

    def close(self) -> None: ...
