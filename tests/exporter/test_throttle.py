"""The throttle: how much of what comes from outside is written out, and what only counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import ErrorFactory
from tocsin import ids
from tocsin.exporter.throttle import OVERFLOW, Throttle
from tocsin.model import Amendment, Entry, ErrorRecord, Repeats, Severity

_numbers = itertools.count(1)

Sift = Callable[..., list[ErrorRecord]]


def foreign_id() -> str:
    return str(UUID(int=next(_numbers) | 0x8 << 76 | 0b10 << 62))


@pytest.fixture
def foreign(error: ErrorFactory) -> ErrorFactory:
    """Errors as they come from outside."""

    def make(exception_type: str = "KeyError", **values: Any) -> ErrorRecord:
        return error(exception_type, **{"id": foreign_id(), "from_outside": True, **values})

    return make


def nothing(group_ids: Collection[str]) -> set[str]:
    return set()


def through(throttle: Throttle, entries: Sequence[Entry], now: float = 0.0, exist: Any = nothing) -> list[ErrorRecord]:
    """What becomes of entries that are stored at once."""
    sifted = throttle.sift(entries, now, exist)
    throttle.keep(sifted)
    return [entry for entry in sifted.entries if isinstance(entry, ErrorRecord)]


def full(records: Sequence[ErrorRecord]) -> list[bool]:
    return [not record.is_summed_up for record in records]


def test_beyond_the_cap_of_a_minute_errors_only_count(foreign: ErrorFactory) -> None:
    throttle = Throttle(full_a_minute=3)

    first = through(throttle, [foreign() for _ in range(5)])
    later = through(throttle, [foreign()], 59.9)
    next_minute = through(throttle, [foreign() for _ in range(4)], 60.0)

    assert full(first) == [True, True, True, False, False]
    assert full(later) == [False]
    assert full(next_minute) == [True, True, True, False]


def test_the_cap_is_of_each_group_alone(foreign: ErrorFactory) -> None:
    """One that storms hides no other, nor the same in another service or environment."""
    throttle = Throttle(full_a_minute=1)
    through(throttle, [foreign(), foreign()])

    others = [foreign("ValueError"), foreign(service="crm"), foreign(environment="staging"), foreign()]

    assert full(through(throttle, others)) == [True, True, True, False]


@pytest.mark.parametrize(
    ("worse", "is_full"),
    [
        ({"severity": Severity.CRITICAL}, [True, False]),
        ({"handled": False}, [True, False]),
        ({"severity": Severity.CRITICAL, "handled": False}, [True, False]),
        ({"severity": Severity.LOW}, [False, False]),
        ({"handled": None}, [False, False]),
    ],
)
def test_what_is_worse_than_all_that_is_written_is_written_too(
    foreign: ErrorFactory, worse: dict[str, Any], is_full: list[bool]
) -> None:
    """What rings and what a page shows may not hang on who came first; once a minute is enough."""
    throttle = Throttle(full_a_minute=1)
    mild: dict[str, Any] = {"severity": Severity.MEDIUM, "handled": True}
    through(throttle, [foreign(**mild), foreign(**mild)])

    assert full(through(throttle, [foreign(**(mild | worse)), foreign(**(mild | worse))])) == is_full


def test_what_could_not_be_stored_is_not_remembered(foreign: ErrorFactory) -> None:
    """The database was away: the same comes again, and is the first again."""
    throttle = Throttle(full_a_minute=1)
    entries = [foreign(severity=Severity.CRITICAL), foreign()]

    attempts = [throttle.sift(entries, 0.0, nothing).entries for _ in range(3)]

    assert attempts[0] == attempts[1] == attempts[2]
    assert full(through(throttle, entries)) == [True, False]


def test_own_errors_are_summed_up_where_they_are_raised(error: ErrorFactory, foreign: ErrorFactory) -> None:
    """Theirs are from this machine, or shipped by another tocsin: repeats name them, so they must be there."""
    throttle = Throttle(full_a_minute=1)
    shipped = [foreign(id=ids.uuid7(), is_shipped=True) for _ in range(3)]

    assert full(through(throttle, [error(), error(), error(), *shipped])) == [True] * 6


def test_an_id_like_tocsins_own_opens_no_way_around_the_cap(foreign: ErrorFactory) -> None:
    """Anybody can make one."""
    assert full(through(Throttle(full_a_minute=1), [foreign(id=ids.uuid7()) for _ in range(3)])) == [True, False, False]


def test_what_is_no_error_passes(foreign: ErrorFactory, error: ErrorFactory, now: Any) -> None:
    entries: list[Entry] = [
        Amendment(error_id=ids.uuid7()),
        Repeats(error_id=ids.uuid7(), count=5, timestamp=now, id=foreign_id()),
        foreign(is_synthetic=True),
    ]

    assert Throttle(full_a_minute=0, new_groups_a_minute=0).sift(entries, 0.0, nothing).entries == entries


def test_too_many_new_groups_of_a_service_join_one(foreign: ErrorFactory) -> None:
    """Messages that were made to differ would ring for each; one group says that there are too many."""
    throttle = Throttle(new_groups_a_minute=2)

    records = through(throttle, [foreign(f"Error{n}") for n in range(5)])
    (other,) = through(throttle, [foreign("Error9", service="crm")])

    assert [record.title for record in records[:2]] == ["Error0: 'phone'", "Error1: 'phone'"]
    assert {record.title for record in records[2:]} == {OVERFLOW}
    assert len({record.fingerprint for record in records[2:]}) == 1
    assert [record.context["tocsin.title"] for record in records[2:]] == [f"Error{n}: 'phone'" for n in (2, 3, 4)]
    assert other.title == "Error9: 'phone'"


def test_the_group_of_too_many_has_a_cap_as_well(foreign: ErrorFactory) -> None:
    throttle = Throttle(full_a_minute=2, new_groups_a_minute=0)

    assert full(through(throttle, [foreign(f"Error{n}") for n in range(4)])) == [True, True, False, False]


def test_a_group_seen_within_the_hour_is_not_new(foreign: ErrorFactory) -> None:
    throttle = Throttle(new_groups_a_minute=1)
    through(throttle, [foreign("Old")])

    known = through(throttle, [foreign("New"), foreign("Old")], 3599.0)
    forgotten = through(throttle, [foreign("Newer"), foreign("New"), foreign("Other")], 3599.0 + 3600)

    assert [record.title for record in known] == ["New: 'phone'", "Old: 'phone'"]
    assert [record.title for record in forgotten] == ["Newer: 'phone'", OVERFLOW, OVERFLOW]


def test_a_group_that_is_stored_is_not_new_after_a_restart(foreign: ErrorFactory) -> None:
    """The database is asked once, and only where there are too many."""
    asked: list[Collection[str]] = []
    stored = foreign("Stored")

    def exist(group_ids: Collection[str]) -> set[str]:
        asked.append(group_ids)
        return {ids.group_id(stored.fingerprint, stored.service, stored.environment)}

    throttle = Throttle(new_groups_a_minute=1)
    through(throttle, [foreign("First")], exist=exist)
    assert asked == []

    records = through(throttle, [stored, foreign("Second"), foreign("Third")], exist=exist)

    assert [record.title for record in records] == ["Stored: 'phone'", OVERFLOW, OVERFLOW]
    assert len(asked) == 1


def test_its_memory_has_an_end(foreign: ErrorFactory) -> None:
    """A sender may call its services anything; whoever is forgotten begins anew."""
    throttle = Throttle(full_a_minute=1)
    for part in range(5):
        through(throttle, [foreign(service=f"s{part}-{n}") for n in range(6_000)])

    assert full(through(throttle, [foreign(service="s4-0"), foreign(service="s0-0")])) == [False, True]
