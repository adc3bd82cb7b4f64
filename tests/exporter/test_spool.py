"""The spool: what is appended is there, whatever dies; what is full only counts; what is broken is skipped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres import missing_part
from tests.waiting import eventually
from tocsin.exporter import spool as spooling
from tocsin.exporter.spool import Spool, adopt_orphans, read_segment
from tocsin.ids import uuid7

PLENTY = 2**30


def line(**content: object) -> bytes:
    return (json.dumps({"v": 1, "kind": "error", **content}) + "\n").encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    opened = Spool(folder, PLENTY, {"resource": {"service.name": "shop"}})
    yield opened
    opened.close(everything_stored=True)


def contents(paths: list[Path]) -> list[dict[str, object]]:
    return [one.content for path in paths for one in read_segment(path, max_bytes=PLENTY) if one.content]


def in_another_process(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code that has a spool of its own, called `spool`, in a process of its own."""
    script = f"""
import os, signal
from pathlib import Path
from tocsin.exporter.spool import *
spool = Spool(Path({str(folder)!r}), {PLENTY}, {{}})
{code}
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30)


def test_lines_come_back_in_order_after_a_header(spool: Spool) -> None:
    for number in range(3):
        assert spool.append(line(number=number))

    header, *lines = contents(spool.segments())

    assert header["resource"] == {"service.name": "shop"}
    assert [one["number"] for one in lines] == [0, 1, 2]


def test_files_belong_to_their_user_alone(spool: Spool, folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_planted_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """Somebody else's file must not be taken over because its name looks right."""
    folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "00000000000000000001-1-00000000.live").symlink_to(victim)

    assert list(adopt_orphans(folder)) == []
    assert victim.read_text() == "precious"


def test_reading_goes_on_where_it_ended(spool: Spool) -> None:
    spool.append(line(number=1))
    first = read_segment(spool.segments()[0])
    spool.append(line(number=2))

    more = read_segment(spool.segments()[0], first[-1].end)

    assert [one.content["number"] for one in more if one.content] == [2]


def test_a_line_without_its_end_waits_while_its_writer_lives_and_is_given_up_after(tmp_path: Path) -> None:
    path = tmp_path / "x.seg"
    path.write_bytes(line(number=1) + b'{"v":1,"kind":"err')

    assert [one.content is None for one in read_segment(path)] == [False]
    assert [one.content is None for one in read_segment(path, is_final=True)] == [False, True]


def test_segments_are_turned_over_and_none_is_lost(spool: Spool) -> None:
    text = "x" * 200_000
    for number in range(100):
        assert spool.append(line(number=number, text=text))

    segments = spool.segments()

    assert len(segments) >= 3
    assert [one["number"] for one in contents(segments) if "number" in one] == list(range(100))


def test_beyond_its_limit_it_only_counts(folder: Path) -> None:
    spool = Spool(folder, 200_000, {})
    written = [spool.append(line(text="x" * 10_000)) for _ in range(30)]

    assert written.count(True) > 10
    assert spool.lost == written.count(False)
    assert spooling.folder_bytes(folder) <= 200_000
    spool.close(everything_stored=True)


def test_a_line_that_is_too_long_is_lost_and_counted(spool: Spool) -> None:
    assert not spool.append(line(text="x" * spooling.LINE_BYTES))
    assert spool.lost == 1


def test_eight_threads_write_whole_lines(spool: Spool) -> None:
    def write(thread: int) -> None:
        for number in range(200):
            spool.append(line(thread=thread, number=number, text="y" * 3000))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [(one["thread"], one["number"]) for one in contents(spool.segments()) if "number" in one]
    assert sorted(found) == [(thread, number) for thread in range(8) for number in range(200)]


def test_eight_threads_count_exactly(spool: Spool) -> None:
    counter = spool.counter(uuid7())
    assert counter is not None

    def count() -> None:
        for _ in range(20_000):
            counter.tick()

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.flush_counts()

    spans = [one for one in contents(spool.segments()) if one["kind"] == "repeats"]
    assert spans[-1]["to"] == 160_000


def test_counts_are_spans_so_that_none_is_told_twice(spool: Spool) -> None:
    counter = spool.counter("e" * 36)
    assert counter is not None
    for round_of in (5, 3):
        for _ in range(round_of):
            counter.tick()
        assert spool.flush_counts()
    assert not spool.flush_counts()

    spans = [(one["from"], one["to"]) for one in contents(spool.segments()) if one["kind"] == "repeats"]
    assert spans == [(0, 5), (5, 8)]


def test_a_counter_that_rests_is_freed_in_two_steps(spool: Spool) -> None:
    """Who still holds it sees that it is free; what it counts until then is not lost."""
    counter = spool.counter(uuid7())
    assert counter is not None
    spool.flush_counts(idle_after_ns=0)
    assert counter.is_free

    counter.tick()
    assert spool.flush_counts(idle_after_ns=0)


def test_there_are_many_counters_and_then_none(spool: Spool) -> None:
    counters = [spool.counter(uuid7()) for _ in range(spooling.SLOTS + 1)]

    assert all(counters[:-1])
    assert counters[-1] is None


def test_what_a_killed_process_wrote_and_counted_is_taken_over(folder: Path) -> None:
    """The counts that it had no time to write out are in its mapped memory, and count once."""
    killed = in_another_process(
        folder,
        """
spool.append(b'{"v": 1, "kind": "error", "id": "a"}\\n')
counter = spool.counter("a" * 36)
for _ in range(100): counter.tick()
spool.flush_counts()
for _ in range(7): counter.tick()
os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    assert killed.returncode == -signal.SIGKILL

    for _ in range(2):  # taken over twice, since the first taker may die too
        (orphan,) = adopt_orphans(folder)
        spans = [(one["from"], one["to"]) for one in contents(orphan.segments()) if one["kind"] == "repeats"]
        assert spans == [(0, 100), (100, 107)]
        orphan.release(everything_stored=False)


def test_what_an_earlier_version_left_is_taken_over_too(folder: Path) -> None:
    """It has said less of its life; a later one says it behind what an earlier one reads."""
    in_another_process(
        folder,
        """
spool.append(b'{"v": 1, "kind": "error", "id": "a"}\\n')
spool.life.set_active(3)
spool.life.note_limit(5)
counter = spool.counter("a" * 36)
for _ in range(7): counter.tick()
os.truncate(next(spool.folder.glob("*.live")), 8 * (8 + 2 * SLOTS) + 40 * SLOTS)
os._exit(9)
""",
    )

    (orphan,) = adopt_orphans(folder)

    assert orphan.words is not None
    assert (orphan.words.active_requests, orphan.words.memory_limit_bytes) == (3, None)
    assert [one["to"] for one in contents(orphan.segments()) if one["kind"] == "repeats"] == [7]
    orphan.release(everything_stored=True)


def test_an_orphan_has_one_taker_and_the_living_none(folder: Path, spool: Spool) -> None:
    in_another_process(folder, "os._exit(9)")

    (orphan,) = adopt_orphans(folder)
    assert list(adopt_orphans(folder)) == []  # a second taker in the same process, which gets its own locks again
    others = in_another_process(folder, "print(len(list(adopt_orphans(spool.folder))))")

    assert others.stdout.split() == ["0"]  # neither the orphan that is held nor this process's own
    orphan.release(everything_stored=True)
    assert [path.name for path in folder.glob("*.live") if path.stem == orphan.stem] == []


def test_what_is_taken_over_says_how_many_were_lost(folder: Path) -> None:
    in_another_process(folder, "spool.lose(); spool.lose(); os._exit(9)")

    (orphan,) = adopt_orphans(folder)

    assert orphan.lost == 2
    orphan.release(everything_stored=True)


def test_a_segment_whose_lock_file_is_gone_is_taken_over_too(folder: Path) -> None:
    in_another_process(folder, 'spool.append(b\'{"v": 1, "kind": "error"}\\n\'); os._exit(9)')
    for path in folder.glob("*.live"):
        path.unlink()

    (orphan,) = adopt_orphans(folder)

    assert len(contents(orphan.segments())) == 2
    orphan.release(everything_stored=True)
    assert list(folder.iterdir()) == []


def test_a_process_does_not_take_its_own_spool_for_an_orphan(folder: Path, spool: Spool) -> None:
    """Its lock would not keep itself out, and would be gone with the attempt."""
    assert list(adopt_orphans(folder)) == []

    others = in_another_process(folder, "print(len(list(adopt_orphans(spool.folder))))")
    assert others.stdout.split() == ["0"]


def test_files_that_are_deleted_while_open_are_made_anew(folder: Path, spool: Spool) -> None:
    """Somebody cleans the temporary folder: what is captured after the next look is there again."""
    counter = spool.counter(uuid7())
    assert counter is not None
    shutil.rmtree(folder)

    spool.refresh()
    assert spool.append(line(number=1))

    assert [one["number"] for one in contents(spool.segments()) if "number" in one] == [1]
    assert len(list(folder.glob("*.live"))) == 1
    assert counter.is_free


def test_a_segment_that_was_just_turned_over_is_not_deleted_yet(spool: Spool) -> None:
    """A thread may hold its descriptor and be about to write."""
    first = spool.segments()[0]
    while spool.is_open(first):
        spool.append(line(text="x" * 200_000))

    assert spool.remove(first) is False
    assert first.exists()


def test_a_count_that_finds_no_room_is_kept_and_not_lost(folder: Path) -> None:
    spool = Spool(folder, 200_000, {})
    counter = spool.counter(uuid7())
    assert counter is not None
    counter.tick()
    spool.max_bytes = 0

    for _ in range(3):
        assert not spool.flush_counts()
    spool.max_bytes = 200_000

    assert spool.flush_counts()
    assert spool.lost == 0
    spool.close(everything_stored=True)


def test_a_forked_child_does_not_hold_its_parents_lock(folder: Path) -> None:
    """A daemon's children outlive it; what it left must be free for others all the same."""
    code = """
child = os.fork()
if child == 0:
    import time
    spool.abandon()
    time.sleep(30)
    os._exit(0)
print(child, flush=True)
os._exit(9)
"""
    child = int(_first_line(folder, code))
    try:
        assert len(list(adopt_orphans(folder))) == 1
    finally:
        os.kill(child, signal.SIGKILL)


def _first_line(folder: Path, code: str) -> str:
    script = f"""
import os
from pathlib import Path
from tocsin.exporter.spool import *
spool = Spool(Path({str(folder)!r}), {PLENTY}, {{}})
{code}
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.stdout.close()
        eventually(lambda: process.poll() is not None)
    return first


@pytest.mark.parametrize("flip", [lambda byte: byte ^ 0xFF, lambda byte: 0, lambda byte: ord("\n"), lambda byte: 13])
def test_a_flipped_byte_hurts_no_other_line(tmp_path: Path, flip: Callable[[int], int]) -> None:
    whole = b"".join(line(number=number, text="hello") for number in range(20))
    path = tmp_path / "x.seg"
    starts = [0]
    for one in whole.splitlines(keepends=True):
        starts.append(starts[-1] + len(one))
    for position in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[position] = flip(broken[position])
        path.write_bytes(bytes(broken))

        numbers = {one.content.get("number") for one in read_segment(path, is_final=True) if one.content}

        hurt = sum(start <= position for start in starts) - 1
        assert numbers >= set(range(20)) - {hurt, hurt + 1}  # a lost newline joins two lines


def test_a_hole_larger_than_a_read_is_passed(tmp_path: Path) -> None:
    """A file system may leave zeros after a crash of the machine."""
    path = tmp_path / "x.seg"
    path.write_bytes(line(number=1) + bytes(300_000) + b"\n" + line(number=2))
    numbers, position = [], 0

    while lines := read_segment(path, position, max_bytes=100_000, is_final=True):
        numbers += [one.content.get("number") for one in lines if one.content]
        position = lines[-1].end

    assert numbers == [1, 2]


def test_what_is_refused_is_kept_for_a_person_within_bounds(tmp_path: Path) -> None:
    for number in range(100):
        spooling.set_aside(tmp_path, line(number=number, text="z" * 250_000), "DataError: no")

    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["refused.jsonl", "refused.old.jsonl"]
    assert spooling.folder_bytes(tmp_path) < 40 * 2**20


def test_a_full_disk_loses_nothing_that_was_said_to_be_written(tmp_path: Path) -> None:
    """On a real disk of 1 MiB: what was appended is whole, what was not is counted, nothing ends the process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        missing_part("the right to mount a small disk")
    try:
        spool = Spool(disk / "spool", PLENTY, {})
        written = [spool.append(line(number=number, text="w" * 5000)) for number in range(400)]
        counter = spool.counter(uuid7())
        assert counter is not None
        counter.tick()

        found = [one["number"] for one in contents(spool.segments()) if "number" in one]
        assert found == [number for number, is_written in enumerate(written) if is_written]
        assert spool.lost == written.count(False) > 0
        spool.close(everything_stored=True)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
