"""Storms: exact counts, few messages, bounded memory; how much slower a service is, `benchmarks/storm.py` tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import mostly
from tests.processes import rows_of
from tests.standin.telegram import TOKEN, TelegramStandIn
from tests.storming import StormingService
from tests.test_serve import serving
from tests.waiting import eventually
from tocsin.instrumentation.capture import NEW_PLACES

RATE: Final = 10_000
MOST_MEMORY: Final = 64 * 2**20
MOST_MESSAGES: Final = 3

_STORED_S: Final = 60  # on a machine that does much else


@contextmanager
def watched(folder: Path, url: str) -> Iterator[tuple[StormingService, TelegramStandIn]]:
    """A service that can storm, a server that looks at its errors, and a chat."""
    known = {"TOCSIN_DATABASE_URL": url, "TOCSIN_SPOOL_DIR": str(folder / "spool")}
    with TelegramStandIn() as telegram:
        channel = {"TOCSIN_TELEGRAM_TOKEN": TOKEN, "TOCSIN_TELEGRAM_CHAT_IDS": "17"}
        with serving(folder, **known, **channel, TOCSIN_TELEGRAM_API_URL=telegram.api_url) as server:
            server.until_ready()
            with StormingService(folder / "service", "tocsin", **known_to_service(known)) as service:
                yield service, telegram


def known_to_service(known: dict[str, str]) -> dict[str, str]:
    return {"database_url": known["TOCSIN_DATABASE_URL"], "TOCSIN_SPOOL_DIR": known["TOCSIN_SPOOL_DIR"]}


def counted(url: str) -> int:
    return sum(row.count for row in rows_of(url))


def memory_of_a_storm_that_nobody_hears(folder: Path, count: int) -> int:
    with StormingService(folder / "alone", "nobody", "sqlite:////nowhere/tocsin.db") as service:
        service.storm(RATE, count)
        return int(service.through(count / RATE + 60)["rss"])


@mostly("postgresql", "empty_database_url")
@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.gate)])
def test_a_storm_is_counted_exactly_and_rings_a_few_times(
    seconds: int, empty_database_url: str, tmp_path: Path
) -> None:
    """
    In one place, with a different message each time.

    Raising them is most of what there is to do, so that it takes as long as it takes on a busy machine.
    """
    count = RATE * seconds
    without = memory_of_a_storm_that_nobody_hears(tmp_path, RATE)
    with watched(tmp_path, empty_database_url) as (service, telegram):
        service.storm(RATE, count)
        told = service.through(seconds + 60)
        eventually(lambda: counted(empty_database_url) == count, _STORED_S)

        rows = rows_of(empty_database_url)
        assert len({row.group_id for row in rows}) == 1
        assert len(rows) <= 4 * (told["took_s"] + 2)
        assert told["rss"] - without <= MOST_MEMORY
        assert 1 <= len(telegram.messages) <= MOST_MESSAGES


@mostly("sqlite", "empty_database_url")
def test_many_places_at_once_are_bounded_groups_and_one_alert(empty_database_url: str, tmp_path: Path) -> None:
    """More different errors than anybody reads: the rest is counted, in a group that says so."""
    count = 20_000
    with watched(tmp_path, empty_database_url) as (service, telegram):
        service.storm(RATE, count, places=count)
        service.through(90)
        eventually(lambda: counted(empty_database_url) == count, _STORED_S)
        groups = {row.group_id for row in rows_of(empty_database_url)}
        assert NEW_PLACES <= len(groups) <= NEW_PLACES + 20
        eventually(lambda: telegram.messages and "errors at once" in telegram.messages[-1].text, 20)

        # All its groups are in the one that was sent last; of those before, each rang before there were many.
        alone = telegram.messages[:-1]
        eventually(lambda: f"{len(groups) - len(alone)} errors at once" in telegram.messages[-1].text, 20)
        assert len(alone) <= MOST_MESSAGES - 1
        assert all("errors at once" not in one.text for one in alone)
