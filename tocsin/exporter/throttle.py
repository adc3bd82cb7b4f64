"""
How much of what comes from outside is written out in full, and what only counts. Pure.

Errors of one's own are summed up where they are raised; whoever sends over the network may not do that.
Nothing is lost by it: what is summed up counts on the newest full error of its group.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tocsin import ids
from tocsin.exporter.brief import Verdict
from tocsin.exporter.fingerprint import VERSION
from tocsin.model import Entry, ErrorRecord

FULL_A_MINUTE = 100
"""Errors of one group that are written out in full in a minute."""

NEW_GROUPS_A_MINUTE = 300
"""Groups that one service may begin in a minute; a team reads none of them, if there are more."""

OVERFLOW = "too many different errors at once"
"""What the group is called that further ones join."""

_OVERFLOW_FINGERPRINT = f"{VERSION}-overflow"
_MINUTE_S = 60.0
_SEEN_S = 3600.0
_MOST_KEYS = 20_000

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class _Written:
    """What of one group is written out in full in this minute."""

    full: int = 0
    worst: int = -1
    is_unhandled: bool = False

    def has_room_for(self, record: ErrorRecord, most: int) -> bool:
        """Also beyond the cap for what is worse than all that is written."""
        is_worse = record.severity.rank > self.worst or (record.handled is False and not self.is_unhandled)
        return self.full < most or is_worse

    def and_(self, record: ErrorRecord) -> _Written:
        return _Written(
            self.full + 1, max(self.worst, record.severity.rank), self.is_unhandled or record.handled is False
        )


@dataclass(slots=True)
class Sifted:
    """Entries as they shall be stored, and what to remember once they are."""

    entries: list[Entry]
    minute: int  #                          of the clock that `sift` was given
    written: dict[str, _Written] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)


class Throttle:
    """
    Decides, and remembers the last minute and which groups were seen within the hour.

    What it remembers is bounded: of what was not heard of for longest it knows nothing any more, so that a
    few more are written out.
    """

    def __init__(self, *, full_a_minute: int = FULL_A_MINUTE, new_groups_a_minute: int = NEW_GROUPS_A_MINUTE) -> None:
        self._full_a_minute = full_a_minute
        self._new_groups_a_minute = new_groups_a_minute
        self._minute = -1
        self._written: OrderedDict[str, _Written] = OrderedDict()  #  by group, in this minute
        self._begun: OrderedDict[str, int] = OrderedDict()  #         new groups by service, in this minute
        self._seen: OrderedDict[str, float] = OrderedDict()  #        when each group was seen last

    def sift(self, entries: Sequence[Entry], now: float, exist: Callable[[Collection[str]], Collection[str]]) -> Sifted:
        """
        What of some entries is to be written out, summed up, or put into the group of too many.

        Nothing is remembered before `keep`: what could not be stored comes again.

        Args:
            now: seconds of a clock that never goes back.
            exist: tells which of some groups are stored; asked at most once, and only when a service
                begins more groups than it may.
        """
        sifted = Sifted([], minute=int(now // _MINUTE_S))
        stored: Collection[str] | None = None
        for entry in entries:
            if not isinstance(entry, ErrorRecord) or not entry.from_outside or entry.is_synthetic:
                sifted.entries.append(entry)
                continue
            record = entry
            group_id = _group_of(record)
            if self._is_new(group_id, now, sifted):
                if self._begun_by(record.service, sifted) < self._new_groups_a_minute:
                    sifted.begun[record.service] = self._begun_by(record.service, sifted) + 1
                else:
                    if stored is None:
                        stored = exist(_groups_of(entries))
                    if group_id not in stored:
                        record = _overflowing(record)
                        group_id = _group_of(record)
            sifted.seen[group_id] = now
            sifted.entries.append(self._capped(record, group_id, sifted))
        return sifted

    def keep(self, sifted: Sifted) -> None:
        """Remember what is stored now."""
        if sifted.minute != self._minute:
            self._minute = sifted.minute
            self._written.clear()
            self._begun.clear()
        _remember(self._written, sifted.written)
        _remember(self._begun, sifted.begun)
        _remember(self._seen, sifted.seen)

    def _capped(self, record: ErrorRecord, group_id: str, sifted: Sifted) -> ErrorRecord:
        if record.is_shipped:  # its repeats and what is known later name it: it must be there
            return record
        if record.is_brief:
            record.is_summed_up = True
            return record
        written = sifted.written.get(group_id)
        if written is None:
            written = (self._written.get(group_id) if sifted.minute == self._minute else None) or _Written()
        record.is_summed_up = not written.has_room_for(record, self._full_a_minute)
        if record.is_summed_up:
            return record
        sifted.written[group_id] = written.and_(record)
        return record

    @staticmethod
    def verdicts(sifted: Sifted) -> Iterator[tuple[int, Verdict]]:
        """What kinds of errors only count until the minute is over."""
        until_s = (sifted.minute + 1) * _MINUTE_S
        for entry in sifted.entries:
            if isinstance(entry, ErrorRecord) and entry.kind is not None and entry.is_summed_up:
                verdict = Verdict(
                    fingerprint=entry.fingerprint,
                    severity=entry.severity,
                    category=entry.category,
                    culprit=entry.culprit,
                    title=entry.title,
                    until_s=until_s,
                )
                yield entry.kind, verdict

    def _is_new(self, group_id: str, now: float, sifted: Sifted) -> bool:
        return group_id not in sifted.seen and self._seen.get(group_id, -_SEEN_S) <= now - _SEEN_S

    def _begun_by(self, service: str, sifted: Sifted) -> int:
        before = self._begun.get(service, 0) if sifted.minute == self._minute else 0
        return sifted.begun.get(service, before)


def _remember(known: OrderedDict[str, _V], more: dict[str, _V]) -> None:
    for key, value in more.items():
        known[key] = value
        known.move_to_end(key)
    while len(known) > _MOST_KEYS:
        known.popitem(last=False)


def _overflowing(record: ErrorRecord) -> ErrorRecord:
    """The error in the one group of its service for what is too much; it says itself what it was."""
    return replace(
        record,
        fingerprint=_OVERFLOW_FINGERPRINT,
        title=OVERFLOW,
        culprit=None,
        exception_type=None,
        category="unknown",
        kind=None,  # it joins for now: what it is itself is not said of it
        context=record.context | {"tocsin.title": record.title},
    )


def _groups_of(entries: Sequence[Entry]) -> set[str]:
    return {_group_of(entry) for entry in entries if isinstance(entry, ErrorRecord)}


def _group_of(record: ErrorRecord) -> str:
    return ids.group_id(record.fingerprint, record.service, record.environment)
