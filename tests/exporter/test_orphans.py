"""What a process that is gone has left: its end is told once, and nothing wrong is told."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.waiting import eventually
from tocsin.exporter import life, orphans
from tocsin.exporter import spool as spooling
from tocsin.exporter.drain import adopting
from tocsin.exporter.life import State
from tocsin.exporter.spool import Orphan, read_segment
from tocsin.settings import Settings
from tocsin.store import open_store
from tocsin.store.schema import error_logs, instances

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
DUMP = """\
Fatal Python error: Bus error

Current thread 0x00007f5636660b80 (most recent call first):
  File "/srv/shop/images.py", line 3 in thumbnail
"""


def left_by(folder: Path, code: str, state: State = State.ALIVE, watcher: int = 0) -> str:
    """Run code in a process that has a spool, called `spool`, and see how it ends; the stem of what it left."""
    script = f"""
import os, signal, sys, time
from pathlib import Path
from tocsin.exporter.life import State
from tocsin.exporter.spool import Spool
resource = {{"service.name": "shop", "service.instance.id": "i-1", "process.pid": os.getpid()}}
spool = Spool(Path({str(folder)!r}), 2**30, {{"resource": resource, "started_ns": time.time_ns()}})
spool.life.set_state(State({int(state)}))
spool.life.set_watcher({watcher})
spool.life.set_active(3)
spool.life.note_memory(98_000_000, time.time_ns())
print(spool.stem, flush=True)
{code}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert not done.stderr, done.stderr
    return done.stdout.strip()


@contextmanager
def adopted(folder: Path, seen: dict[str, float] | None = None) -> Iterator[list[Orphan]]:
    """What can be taken over just now; left again afterwards."""
    found = list(orphans.adopt(folder, {} if seen is None else seen))
    try:
        yield found
    finally:
        for one in found:
            one.release(everything_stored=False)


def told_in(folder: Path) -> list[dict[str, Any]]:
    """The errors that are in the segments of a folder."""
    paths = sorted(folder.glob("*.seg"))
    lines = [one.content for path in paths for one in read_segment(path, max_bytes=2**30)]
    return [one for one in lines if one and one.get("kind") == "error"]


def bodies(folder: Path) -> list[str]:
    return [one["body"] for one in told_in(folder)]


def rewrite(path: Path, **changes: Any) -> None:
    """Change what the first line of a segment says."""
    head, _, rest = path.read_text().partition("\n")
    path.write_text(json.dumps(json.loads(head) | changes) + "\n" + rest)


@pytest.mark.parametrize(
    ("code", "said", "how"),
    [
        (KILL, ["shop ended without a word: likely killed (SIGKILL, or for want of memory)"], "killed"),
        (f"spool.life.note_stopping(time.time_ns()); {KILL}", ["shop: stop ran out of time after 0 s"], "stopped late"),
        ("spool.life.set_state(State.LEFT, 9); os._exit(9)", ["shop was left by os._exit(9)"], "left: 9"),
        ("spool.life.set_state(State.LEFT, 0); os._exit(0)", [], "left: 0"),
        ("spool.close(everything_stored=False)", [], "ended"),
        ("spool.life.note_stopping(time.time_ns()); spool.close(everything_stored=False)", [], "stopped"),
        (
            f"Path(spool.folder, spool.stem + '.fault').write_text({DUMP!r}); {KILL}",
            ["shop crashed by SIGBUS (likely)"],
            None,
        ),
        (f"spool.life.set_state(State.UNMARKED); {KILL}", [], None),
        (f"spool.life.set_state(State.TOLD); {KILL}", [], None),
    ],
)
def test_an_end_without_a_word_is_told_by_who_takes_over(
    tmp_path: Path, code: str, said: list[str], how: str | None
) -> None:
    before_ns = time.time_ns()
    left_by(tmp_path, code)

    with adopted(tmp_path) as (orphan,):
        assert bodies(tmp_path) == said
        assert how is None or orphan.how == how
        assert before_ns < orphan.ended_ns <= time.time_ns()
        ended_ns = orphan.ended_ns
    with adopted(tmp_path) as (again,):  # the first taker may have died before it was stored
        assert bodies(tmp_path) == said
        assert (again.how, again.ended_ns) == (orphan.how, ended_ns)


def test_the_figures_that_it_left_stand_in_the_error(tmp_path: Path) -> None:
    left_by(tmp_path, KILL)

    with adopted(tmp_path):
        (line,) = told_in(tmp_path)

    figures = line["attributes"]
    assert (figures["process.memory_bytes"], figures["process.active_requests"]) == (98_000_000, 3)
    assert 0 <= figures["process.uptime_s"] < 30


def test_a_taker_that_dies_between_telling_and_noting_it_has_told(tmp_path: Path) -> None:
    stem = left_by(tmp_path, KILL)
    with adopted(tmp_path) as (orphan,):
        assert len(told_in(tmp_path)) == 1
    with (tmp_path / f"{stem}.live").open("r+b") as file:
        file.seek(8 * life.STATE)
        file.write(State.ALIVE.to_bytes(8, "little"))

    with adopted(tmp_path) as (orphan,):
        assert len(told_in(tmp_path)) == 1
        assert orphan.how == "killed"


def test_a_line_cut_short_does_not_swallow_the_end(tmp_path: Path) -> None:
    left_by(tmp_path, f'spool.append(b\'{{"v": 1, "kind": "err\'); {KILL}')

    with adopted(tmp_path):
        assert len(told_in(tmp_path)) == 1


def test_an_end_is_told_where_it_is_known_whose_it_is(tmp_path: Path) -> None:
    """The process died as it began another segment, in which there is nothing yet."""
    stem = left_by(tmp_path, KILL)
    (tmp_path / f"{stem}.0002.seg").touch()

    for _ in range(2):
        with adopted(tmp_path):
            lines = [one.content for one in read_segment(tmp_path / f"{stem}.0001.seg", max_bytes=2**20)]
            assert [one and one.get("kind") for one in lines] == ["segment", "error"]
            assert len(told_in(tmp_path)) == 1


def test_who_has_seen_the_end_has_time_to_tell_it(tmp_path: Path) -> None:
    """A parent knows the exit code, and the end of stderr."""
    stem = left_by(tmp_path, KILL, watcher=os.getpid())
    seen: dict[str, float] = {}

    with adopted(tmp_path, seen) as found:
        assert found == []
    assert told_in(tmp_path) == []
    seen[stem] -= orphans.WATCHER_S
    with adopted(tmp_path, seen):
        assert len(told_in(tmp_path)) == 1
    assert seen == {}


def test_a_parent_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left_by(tmp_path, KILL, watcher=gone.pid)

    with adopted(tmp_path) as (orphan,):
        assert orphan.how == "killed"


def test_what_ended_in_order_is_not_left_to_its_parent(tmp_path: Path) -> None:
    left_by(tmp_path, "spool.close(everything_stored=False)", watcher=os.getpid())

    with adopted(tmp_path) as (orphan,):
        assert orphan.how == "ended"


def test_becoming_another_program_is_no_end(tmp_path: Path) -> None:
    """It is seen by none of our hooks where it is done in C; the lock is gone, the process is not."""
    script = f"""
import ctypes, os, time
from pathlib import Path
from tocsin.exporter.life import State
from tocsin.exporter.spool import Spool
spool = Spool(Path({str(tmp_path)!r}), 2**30, {{"resource": {{"service.name": "shop"}}}})
spool.life.set_state(State.ALIVE)
argv = (ctypes.c_char_p * 3)(b"cat", b"-", None)
ctypes.CDLL(None).execvp(b"cat", argv)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write("it is another\n")
        assert program.stdout.readline() == "it is another\n"

        with adopted(tmp_path) as (orphan,):
            assert (orphan.how, orphan.ended_ns) == (None, 0)
        program.stdin.close()
    with adopted(tmp_path):
        assert told_in(tmp_path) == []


def test_a_machine_that_has_restarted_is_what_it_likely_was(tmp_path: Path) -> None:
    """By the name of its run: a clock that was set says nothing."""
    left_by(tmp_path, KILL)
    (segment,) = tmp_path.glob("*.seg")
    rewrite(segment, boot_id="another")

    with adopted(tmp_path) as (orphan,):
        assert bodies(tmp_path) == ["shop ended without a word: likely with the machine, which has restarted since"]
        assert orphan.how == "lost with the machine"


@pytest.mark.parametrize("moment_ns", [1, time.time_ns() + 10**18], ids=["in 1970", "in the future"])
def test_a_clock_that_jumped_makes_no_time_that_cannot_be(tmp_path: Path, moment_ns: int) -> None:
    stem = left_by(tmp_path, f"spool.life.note_memory(1, {moment_ns}); {KILL}")
    new = f"{moment_ns:020d}-{stem.partition('-')[2]}"
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace(stem, new)))

    with adopted(tmp_path) as (orphan,):
        (line,) = told_in(tmp_path)
        assert abs(orphan.ended_ns - time.time_ns()) < 60 * 10**9
    assert line["attributes"].get("process.uptime_s", 0) >= 0
    assert line["body"].endswith("likely killed (SIGKILL, or for want of memory)")


@pytest.mark.parametrize("size", [0, 7, 63, 64, 4096])
def test_a_file_cut_short_or_of_an_earlier_version_says_nothing(tmp_path: Path, size: int) -> None:
    stem = left_by(tmp_path, KILL)
    live = tmp_path / f"{stem}.live"
    data = live.read_bytes()
    live.write_bytes(data[:size] if size < 64 else data[: 8 * life.ACTIVE] + bytes(8 * 6) + data[64:size])

    with adopted(tmp_path) as (orphan,):
        assert orphan.how is None
    assert told_in(tmp_path) == []


def test_hostile_files_ring_nothing_and_hold_up_nobody(tmp_path: Path) -> None:
    """Bytes by chance in every place; what can be stored of them is, and their neighbour's end is told."""
    chance = random.Random(11)
    for _ in range(3):
        left_by(tmp_path, KILL, State.UNMARKED)
    for path in (*tmp_path.glob("*.live"), *tmp_path.glob("*.seg")):
        data = bytearray(path.read_bytes())
        begin = 8 if path.suffix == ".live" else 0
        for at in chance.sample(range(begin, min(len(data), 400)), 60):
            data[at] = chance.randrange(256)
        path.write_bytes(data)
    (tmp_path / "nobody's.live").write_bytes(os.urandom(64))
    (tmp_path / "0-0-0.0001.seg").write_bytes(b'{"v": 1, "kind": "segment"}\n')
    left_by(tmp_path, KILL)

    with adopted(tmp_path) as found:
        assert [one.how for one in found].count("killed") == 1
    assert len(told_in(tmp_path)) == 1


def test_a_fault_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(DUMP)
    folder = tmp_path / "spool"
    stem = left_by(folder, KILL)
    (folder / f"{stem}.fault").symlink_to(secret)

    with adopted(folder) as (orphan,):
        assert orphan.how == "killed"


def test_fault_files_go_with_their_process_and_count_for_nothing(tmp_path: Path) -> None:
    left_by(tmp_path, "Path(spool.folder, spool.stem + '.fault').touch(); spool.close(everything_stored=True)")
    assert list(tmp_path.iterdir()) == []

    left_by(tmp_path, f"Path(spool.folder, spool.stem + '.fault').write_text('x' * 10_000); {KILL}")
    (tmp_path / "00000000000000000001-7-00000000.fault").write_text("of nobody")
    with adopted(tmp_path) as (orphan,):
        assert [path.stem for path in tmp_path.glob("*.fault")] == [orphan.stem]
        assert spooling.folder_bytes(tmp_path) < 10_000
    for one in orphans.adopt(tmp_path, {}):
        one.release(everything_stored=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_never_given_its_name_is_swept(tmp_path: Path) -> None:
    """Its process was killed before anybody could find it; a new one may be just about to."""
    old, new = tmp_path / "1.new", tmp_path / "2.new"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))

    with adopted(tmp_path):
        assert list(tmp_path.iterdir()) == [new]


def test_a_full_disk_puts_off_what_is_told_and_loses_it_not(tmp_path: Path) -> None:
    left_by(tmp_path, KILL)
    (segment,) = tmp_path.glob("*.seg")
    program = f"""
import resource
from pathlib import Path
from tocsin.exporter import orphans
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({segment.stat().st_size + 100}, resource.RLIM_INFINITY))
for one in orphans.adopt(Path({str(tmp_path)!r}), {{}}):
    one.release(everything_stored=True)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert told_in(tmp_path) == []

    with adopted(tmp_path):
        assert len(told_in(tmp_path)) == 1


def test_an_end_is_stored_once_with_the_row_of_its_instance(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    left_by(folder, KILL)
    settings = Settings(database_url=database_url, spool_dir=str(folder))

    with adopting(settings), adopting(settings):
        eventually(lambda: not [path for path in folder.iterdir() if path.name != "rows.kept"])

    store = open_store(database_url)
    errors, processes = store.read_now(
        lambda connection: (connection.execute(select(error_logs)).all(), connection.execute(select(instances)).all())
    )
    store.close_now()
    assert [(row.exception_type, row.severity, row.service) for row in errors] == [("ProcessExit", "critical", "shop")]
    (process,) = processes
    assert process.ended_how == "killed"
    assert process.ended_at == errors[0].timestamp == process.last_seen
