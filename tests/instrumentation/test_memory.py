"""The memory of a process: its trend, the warning before its limit, and what is said then."""

from __future__ import annotations

import gc
import random
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.waiting import eventually
from tocsin.exporter.decode import Source, decode
from tocsin.exporter.limits import Limit
from tocsin.exporter.spool import Spool
from tocsin.instrumentation.memory import Trend, Watch, is_to_warn, is_well
from tocsin.model import ErrorRecord, Recovery, Severity

MB = 2**20
LIMIT = 100 * MB
MINUTE = 60.0
HOUR = 3600.0


# The trend.


def trend_of(size: Callable[[float], float], minutes: float) -> float | None:
    trend = Trend()
    for second in range(int(minutes * MINUTE)):
        trend.note(1_000.0 + second, int(size(float(second))))
    return trend.per_hour


def test_a_leak_is_a_trend() -> None:
    per_hour = trend_of(lambda second: 50 * MB + 2 * MB * second / MINUTE, 12)

    assert per_hour == pytest.approx(120 * MB, rel=0.05)


def test_a_leak_under_the_load_of_requests_is_the_same_trend() -> None:
    chance = random.Random(1)

    per_hour = trend_of(lambda second: 50 * MB + 2 * MB * second / MINUTE + chance.random() * 40 * MB, 12)

    assert per_hour == pytest.approx(120 * MB, rel=0.2)


def test_a_leak_that_comes_in_spurts_is_one_too() -> None:
    per_hour = trend_of(lambda second: 50 * MB + 6 * MB * (second // (3 * MINUTE)), 15)

    assert per_hour == pytest.approx(120 * MB, rel=0.4)


@pytest.mark.parametrize("at", [1, 3, 5, 7, 9, 11])
def test_one_step_is_none(at: int) -> None:
    """A cache that fills, a library that loads: whenever it comes."""
    assert trend_of(lambda second: 50 * MB + (40 * MB if second > at * MINUTE else 0), 12) == 0


def test_requests_that_come_and_go_are_none() -> None:
    chance = random.Random(2)

    per_hour = trend_of(lambda second: 50 * MB + chance.choice([0, 0, 0, 60 * MB]), 15)

    assert per_hour == 0


def test_memory_that_is_given_back_is_a_trend_below_zero() -> None:
    assert trend_of(lambda second: 90 * MB - 2 * MB * second / MINUTE, 12) == pytest.approx(-120 * MB, rel=0.05)


def test_it_is_not_known_before_it_is_sure() -> None:
    """The first minute does not count at all: a program loads itself."""
    assert trend_of(lambda second: 50 * MB + MB * second, 7) is None
    assert trend_of(lambda second: 50 * MB + (200 * MB * second if second < MINUTE else 12_000 * MB), 8) == 0


# When it warns.


@pytest.mark.parametrize(
    ("used", "per_hour", "warns", "is_over"),
    [
        (79, None, False, False),
        (80, None, True, False),
        (100, None, True, False),
        (75, None, False, False),
        (69, None, False, True),
        (60, 160, True, False),  # reached in 15 min
        (60, 150, False, False),
        (60, 40, False, True),  # in an hour
        (60, -500, False, True),
        (40, 1_000, False, True),  # less than half: there is time to see
        (85, -500, True, False),
    ],
)
def test_it_warns_near_the_limit_and_before_it_soon_is(
    used: int, per_hour: int | None, warns: bool, is_over: bool
) -> None:
    """Used and trend in percent of the limit."""
    trend = None if per_hour is None else per_hour / 100 * LIMIT
    assert is_to_warn(used * MB, LIMIT, trend, 80) is warns
    assert is_well(used * MB, LIMIT, trend, 80) is is_over


# What it says.


class Order:
    """What a service forgets to let go of."""


class Service:
    """A process whose memory and time are given; what it says is kept."""

    def __init__(self, folder: Path, percent: int = 80, others: Callable[[], list[int]] = list) -> None:
        self.resident = 0
        self.now_s = 5_000.0
        self.lines: list[dict[str, Any]] = []
        self.spool = Spool(folder / "spool", 2**30, {"resource": {}})
        limit = Limit("--max-memory", LIMIT, lambda resident, now_s: resident, others)
        self.watch = Watch(
            self.spool, percent, tell=self.lines.append, read=lambda: self.resident, find=lambda: [limit]
        )

    def is_at(self, percent: float, seconds: int = 1) -> None:
        """For so long, looked at each second; what that begins is waited for."""
        self.resident = int(percent / 100 * LIMIT)
        for _ in range(seconds):
            self.now_s += 1
            self.watch.look(self.now_s)
            eventually(lambda: not self.watch.is_looking)

    def entries(self) -> list[Any]:
        source = Source("shop", "production", "r1", "i-1", None)
        return [decode({"v": 1, **line}, source) for line in self.lines]


@pytest.fixture(autouse=True)
def nothing_else() -> Iterator[None]:
    """What the tests themselves have loaded is not looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    one = Service(tmp_path)
    yield one
    one.spool.close(everything_stored=True)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """A list in a module of the team's."""
    module = ModuleType("shop_of_a_test")
    module.__file__ = "/srv/shop/shop_of_a_test.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    orders: list[Order] = []
    vars(module)["KEPT"] = orders
    return orders


def test_it_warns_once_and_says_when_that_is_over(service: Service) -> None:
    service.is_at(60, 30)
    service.is_at(82.5, 120)
    service.is_at(72, 120)  # between the two
    service.is_at(81, 10)
    service.is_at(60, 61)
    service.is_at(72, 300)
    service.is_at(85)

    first, over, again = service.entries()

    assert isinstance(first, ErrorRecord) and isinstance(over, Recovery) and isinstance(again, ErrorRecord)
    assert (first.severity, first.category, first.mechanism, first.service) == (
        Severity.HIGH,
        "unknown",
        "memory",
        "shop",
    )
    assert first.title.startswith("memory is at 82 % of its limit: 82 MB of 100 MB (--max-memory) after ")
    assert over.error_id == first.id
    assert over.message == "memory is at 60 % of its limit again: 60 MB of 100 MB (--max-memory)"
    assert again.id != first.id
    assert again.fingerprint == first.fingerprint


def test_a_short_dip_is_no_end_of_it(service: Service) -> None:
    """A collection of garbage, a pause between requests."""
    service.is_at(85)
    for _ in range(10):
        service.is_at(50, 55)
        service.is_at(85, 5)

    assert [line["kind"] for line in service.lines] == ["error"]


def test_it_names_what_grew(service: Service, kept: list[Order]) -> None:
    """Since it was at less than half of its limit; whatever grew, it is one group."""
    service.is_at(45)
    kept += [Order() for _ in range(20_000)]
    service.is_at(85)
    first = service.entries()[0]
    kept.clear()
    service.is_at(30, 62)
    service.is_at(85)

    _, _, second = service.entries()

    assert f"; grew most: {__name__}.Order by 20,000" in first.message
    assert "the list shop_of_a_test.KEPT has 20,000 items" in first.message
    found = first.context["tocsin.memory"]
    assert found["grew"][0] == {"type": f"{__name__}.Order", "more": 20_000, "now": 20_000}
    assert found["largest"][0]["name"] == "shop_of_a_test.KEPT"
    assert (found["used"], found["limit"], found["limit_by"]) == (85 * MB, LIMIT, "--max-memory")
    assert "Order" not in second.message
    assert second.fingerprint == first.fingerprint


def test_a_trend_is_warned_of_before_the_limit_is_near(service: Service) -> None:
    """Ten minutes of a leak of 2 MB a minute: from 50 MB on there are 25, at 70 there are 15."""
    for second in range(900):
        service.is_at(44 + second / 30)
        if service.lines:
            break

    (found,) = service.entries()
    assert found.message.startswith("memory is at 7")
    assert "+1" in found.message and "MB an hour (reached in 1" in found.message
    words = service.spool.life.read()
    assert words.memory_limit_bytes == LIMIT
    assert words.memory_trend == pytest.approx(120 * MB, rel=0.1)


def test_what_grew_is_left_for_the_parent_that_restarts_it(
    service: Service, kept: list[Order], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was at the warning, and anew at the limit; gone when the warning is over. Nobody else reads it."""
    monkeypatch.setenv("TOCSIN_TOLD", str(tmp_path / "0190.told"))
    finding = tmp_path / "0190.grew"
    service.is_at(45)
    kept += [Order() for _ in range(20_000)]
    service.is_at(85)
    assert f"{__name__}.Order by 20,000" in finding.read_text()
    assert stat.S_IMODE(finding.stat().st_mode) == 0o600
    kept += [Order() for _ in range(10_000)]
    service.is_at(90, 30)
    assert f"{__name__}.Order by 20,000" in finding.read_text()
    service.is_at(96, 2)
    assert f"{__name__}.Order by 30,000" in finding.read_text()
    assert [line["kind"] for line in service.lines] == ["error"]
    service.is_at(30, 62)
    assert not finding.exists()


def test_of_those_that_share_a_limit_the_largest_says_it(tmp_path: Path) -> None:
    """It may be one that says nothing: half way to the limit the others speak too."""
    service = Service(tmp_path, others=lambda: [90 * MB])
    service.is_at(85, 5)
    assert not service.lines
    service.is_at(90)
    assert len(service.lines) == 1
    service.spool.close(everything_stored=True)


def test_switched_off_it_tells_figures_alone(tmp_path: Path) -> None:
    service = Service(tmp_path, percent=0)
    service.is_at(99, 5)

    assert not service.lines
    assert service.spool.life.read().memory_limit_bytes == LIMIT
    service.spool.close(everything_stored=True)
