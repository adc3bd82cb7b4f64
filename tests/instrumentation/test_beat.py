"""`tocsin.beat`: what runs on a schedule says each time that it has."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import tocsin
from tests.instrumentation.conftest import Watched
from tocsin.store import beats, open_store
from tocsin.store.beats import KeptBeat

NIGHTLY = "nightly"


def kept(watched: Watched) -> list[KeptBeat]:
    """All beats that are stored by now."""
    assert tocsin.flush(10)
    store = open_store(watched.database_url)
    try:
        return store.read_now(beats.list_beats)
    finally:
        store.close_now()


def test_a_function_that_returns_is_well(watched: Watched) -> None:
    @tocsin.beat(NIGHTLY, every="1d", grace="30m")
    def clean_up(days: int) -> int:
        return days

    assert clean_up(7) == 7

    (beat,) = kept(watched)
    assert (beat.name, beat.service, beat.environment) == (NIGHTLY, "shop", "test")
    assert (beat.every_s, beat.grace_s, beat.is_ok) == (86_400.0, 1800.0, True)
    assert beat.took_s is not None
    assert 0 <= beat.took_s < 5


def test_a_function_that_raises_has_failed_and_raises_the_same(watched: Watched) -> None:
    """The exception is on its way to whoever records it; the beat names it, without its secrets."""
    exc = ValueError("no space left, password=hunter22")

    @tocsin.beat(NIGHTLY, every=timedelta(days=1))
    def clean_up() -> None:
        raise exc

    with pytest.raises(ValueError) as caught:
        clean_up()

    assert caught.value is exc
    (beat,) = kept(watched)
    assert not beat.is_ok
    assert beat.message is not None
    assert beat.message.startswith("ValueError: no space left")
    assert "hunter22" not in beat.message
    assert watched.rows() == []


async def test_a_coroutine_function_stays_one(unwatched: Watched) -> None:
    unwatched.init()

    @tocsin.beat(NIGHTLY, every="1d")
    async def clean_up(number: int) -> float:
        await asyncio.sleep(0)
        return 1 / number

    assert inspect.iscoroutinefunction(clean_up)
    assert await clean_up(2) == 0.5
    assert kept(unwatched)[0].is_ok
    with pytest.raises(ZeroDivisionError):
        await clean_up(0)
    assert kept(unwatched)[0].message == "ZeroDivisionError: division by zero"


async def test_blocks_of_both_kinds(unwatched: Watched) -> None:
    unwatched.init()
    with tocsin.beat("a", every="1h"), tocsin.beat("b", every="1h"):
        pass
    async with tocsin.beat("c", every="1h"):
        pass
    with pytest.raises(KeyError):
        async with tocsin.beat("d", every="1h"):
            raise KeyError("x")

    assert [(one.name, one.is_ok) for one in kept(unwatched)] == [("a", True), ("b", True), ("c", True), ("d", False)]


def test_a_signature_is_kept() -> None:
    def plain(a: int, /, b: str = "x", *args: Any, c: bool, **more: Any) -> dict[str, int]:
        """What it does."""
        return {}

    beating = tocsin.beat(NIGHTLY, every="1d")(plain)

    assert inspect.signature(beating) == inspect.signature(plain)
    assert (beating.__name__, beating.__doc__) == ("plain", "What it does.")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"name": ""}, "name: "),
        ({"name": "a/b"}, "name: "),
        ({"name": None}, "name: "),
        ({"every": "daily"}, "every: give a length of time such as 30m, 2h, 1d or 1w"),
        ({"every": 5}, "every: "),
        ({"every": timedelta(0)}, "every: "),
        ({"every": "9999d"}, "every: "),
        ({"grace": "-1h"}, "grace: "),
    ],
)
def test_what_is_wrong_is_said_when_it_is_written_down(given: dict[str, Any], problem: str) -> None:
    """Not at night, when the job runs for the first time."""
    with pytest.raises(ValueError, match="^" + problem):
        tocsin.beat(**{"name": NIGHTLY, "every": "1d", **given})


def test_a_generator_cannot_be_decorated() -> None:
    """It would be over before it has begun."""

    def chunks() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="chunks is a generator"):
        tocsin.beat(NIGHTLY, every="1d")(chunks)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), asyncio.CancelledError(), SystemExit(3)])
def test_only_what_has_ended_by_itself_is_told(watched: Watched, interrupt: BaseException) -> None:
    """A deploy that cancels a job is no failure of it; an exit code other than 0 is."""
    with pytest.raises(type(interrupt)), tocsin.beat(NIGHTLY, every="1d"):
        raise interrupt

    assert [one.is_ok for one in kept(watched)] == ([False] if isinstance(interrupt, SystemExit) else [])


def test_an_exit_in_good_order_is_well(watched: Watched) -> None:
    with pytest.raises(SystemExit), tocsin.beat(NIGHTLY, every="1d"):
        raise SystemExit(0)

    assert kept(watched)[0].is_ok


def test_what_runs_all_the_time_is_told_now_and_then(watched: Watched) -> None:
    """A thousand runs in a moment are one line; that it fails now is told at once."""

    @tocsin.beat(NIGHTLY, every="1m")
    def tick(divisor: int) -> float:
        return 1 / divisor

    for _ in range(1000):
        tick(1)
    with pytest.raises(ZeroDivisionError):
        tick(0)

    assert not kept(watched)[0].is_ok
    written = b"".join(path.read_bytes() for path in watched.spool.glob("*.seg"))
    assert written.count(b'"kind":"beat"') == 2


def test_without_init_it_is_a_plain_function(unwatched: Watched) -> None:
    @tocsin.beat(NIGHTLY, every="1d")
    def clean_up() -> int:
        return 7

    assert clean_up() == 7
    assert not unwatched.spool.exists()
