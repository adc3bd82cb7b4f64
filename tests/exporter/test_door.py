"""The door: whoever has an answer has their errors on the disk, and everybody gets an answer."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tocsin.exporter.door import Door, Full, Room, inflated
from tocsin.exporter.otlp import Reader, Reading, TooMuch, Unreadable
from tocsin.exporter.spool import Spool, adopt_orphans, read_segment
from tocsin.failures import BadInput, TocsinError
from tocsin.settings import Settings

MIB = 2**20


def posted(message: str = "boom") -> bytes:
    return json.dumps({"message": message}).encode()


async def post(door: Door, body: bytes, *, is_gzip: bool = False) -> Reading:
    return await door.take("posted", body, is_json=True, is_gzip=is_gzip)


def kept_in(spool: Spool) -> list[dict[str, Any]]:
    """The errors that stand in a spool."""
    lines = [line.content or {} for path in spool.segments() for line in read_segment(path, max_bytes=64 * MIB)]
    return [line for line in lines if line.get("kind") == "error"]


@contextlib.contextmanager
def opened(
    folder: Path, reader: Reader | None = None, *, max_bytes: int = 2**30, wake: Callable[[], None] = lambda: None
) -> Iterator[tuple[Door, Spool]]:
    """A door on a spool of its own."""
    spool = Spool(folder / "spool", max_bytes, {"door": True})
    door = Door(reader or Reader(Settings()), spool, wake)
    door.start()
    try:
        yield door, spool
    finally:
        door.close(5)
        spool.close(everything_stored=True)


async def test_an_answer_means_that_it_is_in_the_spool(tmp_path: Path) -> None:
    woken = []
    with opened(tmp_path, wake=lambda: woken.append(1)) as (door, spool):
        reading = await post(door, posted())

        assert [line["id"] for line in kept_in(spool)] == reading.ids
        assert woken


async def test_all_who_wait_are_answered_each_with_their_own(tmp_path: Path) -> None:
    with opened(tmp_path) as (door, spool):
        bodies = [json.dumps([{"message": f"{n}.{k}"} for k in range(n % 3 + 1)]).encode() for n in range(300)]

        readings = await asyncio.gather(*(post(door, body) for body in bodies))

        kept = {line["id"]: line["body"] for line in kept_in(spool)}
    for n, reading in enumerate(readings):
        assert [kept[one] for one in reading.ids] == [f"{n}.{k}" for k in range(n % 3 + 1)]


async def test_what_is_wrong_with_one_body_is_only_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as (door, spool):
        outcomes = await asyncio.gather(
            post(door, b"{"),
            post(door, posted()),
            post(door, b"[{}]"),
            post(door, posted(), is_gzip=True),
            post(door, b'"' + b"x" * 2 * MIB + b'"'),
            door.take("logs", b"\xff\xff", is_json=False, is_gzip=False),
            return_exceptions=True,
        )

        assert len(kept_in(spool)) == 1
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds[0] in (Unreadable, BadInput)
    assert kinds[1:] == [Reading, BadInput, Unreadable, TooMuch, Unreadable]


async def test_a_full_spool_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """Its sender still has it; so it is not counted as lost. There is room again once it is drained."""
    with opened(tmp_path, max_bytes=20_000) as (door, spool):
        outcomes = await asyncio.gather(*(post(door, posted("x" * 3000)) for _ in range(20)), return_exceptions=True)
        refused = [one for one in outcomes if isinstance(one, Full)]
        lost = spool.lost
        empty = await post(door, b"[]")
        spool.folder_bytes = 0
        again = await post(door, posted())

        assert len(kept_in(spool)) >= 21 - len(refused)
    assert refused
    assert refused[0].retry_after_s > 0
    assert lost == 0
    assert (empty.taken, again.taken) == (0, 1)


async def test_without_a_spool_everything_is_refused() -> None:
    door = Door(Reader(Settings()), None, lambda: None)
    door.start()
    with pytest.raises(Full, match="spool folder"):
        await post(door, posted())
    door.close(5)


async def test_what_waits_at_the_end_is_finished(tmp_path: Path) -> None:
    """What comes after is refused, and sent again to whoever comes next."""
    with opened(tmp_path) as (door, spool):
        waiting = [asyncio.create_task(post(door, posted())) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.to_thread(door.close, 5)
        readings = await asyncio.gather(*waiting)
        with pytest.raises(Full):
            await post(door, posted())
        door.close(5)

        assert len(kept_in(spool)) == len(readings) == 50


async def test_what_was_answered_outlives_the_door(tmp_path: Path) -> None:
    """What nobody has stored yet is found by the next who looks."""
    spool = Spool(tmp_path, 2**30, {"door": True})
    door = Door(Reader(Settings()), spool, lambda: None)
    door.start()
    reading = await post(door, posted())
    door.close(5)
    spool.close(everything_stored=False)

    (orphan,) = adopt_orphans(tmp_path)
    lines = [line.content or {} for path in orphan.segments() for line in read_segment(path)]
    orphan.release(everything_stored=True)

    assert [line["id"] for line in lines if line["kind"] == "error"] == reading.ids


async def test_a_reader_that_fails_refuses_that_body_and_goes_on(tmp_path: Path) -> None:
    """It would fail again: its sender shall not come back for ever."""

    class Failing(Reader):
        def posted(self, body: bytes, *, now_ns: int) -> Reading:
            if b"fail" in body:
                raise RecursionError
            return super().posted(body, now_ns=now_ns)

    with opened(tmp_path, Failing(Settings())) as (door, _):
        with pytest.raises(Unreadable):
            await post(door, posted("fail"))

        assert (await post(door, posted())).taken == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_thread_that_ends_leaves_nobody_waiting(tmp_path: Path) -> None:
    class Ending(Reader):
        def posted(self, body: bytes, *, now_ns: int) -> Reading:
            raise SystemExit

    with opened(tmp_path, Ending(Settings())) as (door, _):
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*(post(door, posted()) for _ in range(100)), return_exceptions=True)
            with pytest.raises(Full):
                await post(door, posted())

    assert {type(outcome) for outcome in outcomes} == {Full}


async def test_one_who_gives_up_holds_up_nobody(tmp_path: Path) -> None:
    with opened(tmp_path) as (door, _):
        given_up = asyncio.create_task(post(door, posted()))
        await asyncio.sleep(0)
        given_up.cancel()

        assert (await post(door, posted())).taken == 1


def test_the_room_for_bodies_is_bounded() -> None:
    room = Room(max_bytes=100, max_bodies=2)
    with room.enter() as first, room.enter() as second:
        first.grow(60)
        second.grow(40)
        with pytest.raises(Full):
            first.grow(1)
        with pytest.raises(Full):
            room.enter()
    with room.enter() as third:
        third.grow(100)
    with room.enter() as fourth, room.enter(is_gzip=True) as packed:
        fourth.grow(1)
        with pytest.raises(Full):
            packed.grow(60)


def test_a_large_packed_body_gets_in_when_it_is_alone() -> None:
    """It takes all of the room; were it refused, its sender would come again for ever."""
    room = Room(max_bytes=100)
    with room.enter(is_gzip=True) as packed:
        packed.grow(60)
        packed.grow(0)
        with pytest.raises(Full):
            packed.grow(1)
    with room.enter() as other:
        other.grow(100)


# gzip


def with_trailer(data: bytes, *, crc: int | None = None, size: int | None = None) -> bytes:
    old_crc, old_size = struct.unpack("<II", data[-8:])
    return data[:-8] + struct.pack("<II", old_crc if crc is None else crc, old_size if size is None else size)


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


ONE = zipped(b"one")
NOISE = random.Random(7).randbytes(MIB)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        pytest.param(ONE, b"one", id="one member"),
        pytest.param(zipped(b""), b"", id="nothing"),
        pytest.param(ONE + zipped(b" two"), b"one two", id="two members"),
        pytest.param(ONE * 64, b"one" * 64, id="64 members"),
        pytest.param(zipped(NOISE), NOISE, id="what cannot be packed"),
        pytest.param(zipped(NOISE[: MIB // 2]) * 2, NOISE[: MIB // 2] * 2, id="two large members"),
        pytest.param(ONE * 65, TooMuch, id="65 members"),
        pytest.param(zipped(bytes(MIB + 1)), TooMuch, id="a byte too much"),
        pytest.param(zipped(bytes(MIB)) + ONE, TooMuch, id="too much together"),
        pytest.param(with_trailer(zipped(bytes(2 * MIB)), size=1), TooMuch, id="too much, and it says little"),
        pytest.param(b"", Unreadable, id="no member"),
        pytest.param(b"one", Unreadable, id="no gzip"),
        pytest.param(ONE[:-1], Unreadable, id="cut in the trailer"),
        pytest.param(ONE[:12], Unreadable, id="cut in the data"),
        pytest.param(ONE[:5], Unreadable, id="cut in the header"),
        pytest.param(ONE + b"\0", Unreadable, id="a byte behind it"),
        pytest.param(ONE + ONE[:-4], Unreadable, id="a second one cut short"),
        pytest.param(with_trailer(ONE, size=4), Unreadable, id="another size"),
        pytest.param(with_trailer(ONE, size=2**32 - 1), Unreadable, id="a huge size"),
        pytest.param(with_trailer(ONE, crc=0), Unreadable, id="another sum"),
    ],
)
def test_gzip_is_read_strictly(data: bytes, outcome: bytes | type[TocsinError]) -> None:
    if isinstance(outcome, bytes):
        assert inflated(data, MIB) == outcome
        return
    with pytest.raises(outcome):
        inflated(data, MIB)


@pytest.mark.parametrize("times", [1, 2], ids=["bomb", "bomb of bombs"])
def test_a_bomb_takes_no_more_memory_than_its_limit(times: int) -> None:
    limit = 50 * 2**10
    data = bytes(64 * MIB)
    for _ in range(times):
        data = zipped(data)
    tracemalloc.start()
    try:
        with contextlib.suppress(TooMuch):
            assert len(inflated(data, limit)) <= limit
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < limit + 256 * 2**10
