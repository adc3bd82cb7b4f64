"""
Every way to die or fail, as a real process: what is recorded, and what the program does next.

`python -m tests.reliability.test_ways_to_die` writes the table in ``docs/crashes.md`` anew.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import missing_part
from tests.processes import ROOT, drain_rest, environment_of, rows_of
from tests.reliability.ways import PROGRAMS, SECTIONS, Program, Row, Running, Told
from tests.waiting import eventually

BATCHES = 4
_AT_ONCE = 4
_AWAY = "http://127.0.0.1:9"  # nobody listens there: all of it waits in the spool, as while a server is away

PAGE = ROOT / "docs" / "crashes.md"
_BEGIN = "<!-- ways: written by `python -m tests.reliability.test_ways_to_die` -->\n"
_END = "<!-- /ways -->\n"


@dataclass(slots=True)
class End:
    """How a program ended."""

    code: int | None = None
    said: str = ""
    problem: BaseException | None = None  # of who played


def run(program: Program, folder: Path, url: str) -> End:
    """Run a program to its end, in a folder of its own; its spool folder is shared by all."""
    environ = environment_of(
        folder, url, TOCSIN_SERVICE=program.name, TOCSIN_ENDPOINT=_AWAY, PYTHONFAULTHANDLER="", **program.environ
    )
    end = End()
    with ExitStack() as parts:
        for part in filter(None, [_PARTS.get(program.needs)]):
            environ |= parts.enter_context(part(folder))
        running = Running(program, folder / program.name, environ)
        try:
            if program.play is not None:
                program.play(running)
        except BaseException as problem:
            end.problem = problem
        with suppress(Exception):
            end.code = running.end(at_once=end.problem is not None)
        end.said = running.said()
    return end


@contextmanager
def _redis(folder: Path) -> Iterator[dict[str, str]]:
    """A server of Redis of its own; where it is, for the environment."""
    socket = folder / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            eventually(socket.exists)
            yield {"REDIS": f"unix://{socket}"}
        finally:
            server.kill()


@contextmanager
def _limited_memory(folder: Path) -> Iterator[dict[str, str]]:
    """A control group with little memory; where it is, for the environment."""
    group = memory_group()
    assert group is not None
    try:
        (group / next(name for name in _LIMITS if (group / name).exists())).write_text(str(_MEMORY_BYTES))
        yield {"CGROUP": str(group)}
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


_LIMITS = ("memory.max", "memory.limit_in_bytes")
_MEMORY_BYTES = 150 * 2**20
_PARTS: dict[str, Callable[[Path], AbstractContextManager[dict[str, str]]]] = {
    "redis": _redis,
    "cgroup": _limited_memory,
}


def is_there(part: str) -> bool:
    """Whether a machine has what a program needs; a control group takes rights that few containers give."""
    if part == "cgroup":
        group = memory_group()
        if group is not None:
            group.rmdir()
        return group is not None
    if part == "uvloop":
        return importlib.util.find_spec(part) is not None
    return not part or shutil.which({"redis": "redis-server"}.get(part, part)) is not None


def memory_group() -> Path | None:
    """A new control group for memory; None where none can be made."""
    own_groups = Path("/proc/self/cgroup")
    for line in own_groups.read_text().splitlines() if own_groups.exists() else ():
        _, controllers, own = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        for parent in (root / own.lstrip("/"), root):
            group = parent / f"tocsin-test-{os.getpid()}-{threading.get_ident()}"
            with suppress(OSError):
                group.mkdir()
                if any((group / name).exists() for name in _LIMITS):
                    return group
                group.rmdir()
    return None


def fits(row: Any, told: Told) -> bool:
    """Whether a row of the table says what is to be told."""
    return (
        (row.severity, (row.exception_type or "").rpartition(".")[2], row.mechanism)
        == (told.severity, told.type, told.mechanism)
        and told.says in row.message
        and all(also.says in str(_evidence(row, also.where)) for also in told.also)
    )


def _evidence(row: Any, where: str) -> Any:
    found = row.stack if where == "stack" else row.context.get(where)
    return "\0" if found is None else found


def shown(row: Any) -> str:
    """A row of the table for who reads why a test failed."""
    return f"{row.severity} {row.exception_type}: {row.message!r} by {row.mechanism} x{row.count} {row.context}"


def with_doubles(programs: Sequence[Program]) -> list[Program]:
    """The same once more on uvloop, where the loop matters."""
    doubles = [
        replace(one, name=f"{one.name}-uvloop", environ={**one.environ, "LOOP": "uvloop"}, needs="uvloop")
        for one in programs
        if one.loops
    ]
    return [*programs, *doubles]


def batch(number: int) -> list[Program]:
    """A share of the programs: the heavy ones are dealt out first."""
    in_order = sorted(with_doubles([one for one in PROGRAMS if not one.is_gate]), key=lambda one: not one.is_heavy)
    return in_order[number::BATCHES]


@pytest.mark.parametrize("number", range(BATCHES))
def test_each_way_is_recorded_and_ends_as_the_table_says(
    number: int, sqlite_url: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    check(batch(number), sqlite_url, tmp_path, subtests)


@pytest.mark.gate
def test_the_slow_ways_too(sqlite_url: str, tmp_path: Path, subtests: pytest.Subtests) -> None:
    check(with_doubles([one for one in PROGRAMS if one.is_gate]), sqlite_url, tmp_path, subtests)


def check(programs: Sequence[Program], url: str, folder: Path, subtests: pytest.Subtests) -> None:
    """Run programs, several at once, and hold every row of theirs to what it says."""
    (folder / ".gunicorn").mkdir()  # of those that start at once, each would make it
    for part in sorted({one.needs for one in programs if not is_there(one.needs)} - {"cgroup"}):
        with subtests.test(part):
            missing_part(part)
    programs = [one for one in programs if is_there(one.needs)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        ends = list(pool.map(lambda one: run(one, folder, url), programs))
    drain_rest(folder, url)
    found = rows_of(url)
    for program, end in zip(programs, ends, strict=True):
        rest = [row for row in found if row.service == program.name]
        for row in program.rows:
            with subtests.test(f"{program.name}: {row.way}"):
                for told in row.told:
                    fitting = [one for one in rest if fits(one, told)]
                    rest = [one for one in rest if one not in fitting]
                    found_times = sum(one.count for one in fitting)
                    assert found_times == told.count, _report(f"{told} is {found_times} times there", rest, end)
        with subtests.test(f"{program.name}: its end, and nothing else is recorded"):
            if end.problem is not None:
                raise end.problem
            assert end.code == program.exit, _report(f"{end.code}, not {program.exit}", rest, end)
            assert not rest, _report("more is recorded", rest, end)
            if program.play is None and any(program.goes_on(row) for row in program.rows):
                assert "went on" in end.said, end.said


def _report(what: str, rest: Sequence[Any], end: End) -> str:
    return "\n".join([what, "left over:", *map(shown, rest), f"exit {end.code}, and said:", end.said])


# The table in the docs.


def table() -> str:
    """The rows as the page shall have them."""
    parts = []
    for title, programs in SECTIONS.items():
        lines = [f"### {title}\n", "| what happens | recorded | the program | who starts it again |"]
        lines.append("| --- | --- | --- | --- |")
        for program in programs:
            for row in program.rows:
                cells = (_way(program, row), _recorded(row), program.then(row), program.who(row))
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _way(program: Program, row: Row) -> str:
    return f"{row.way} (asyncio, uvloop)" if program.loops else row.way


def _recorded(row: Row) -> str:
    return "; ".join(map(_told, row.told)) or "nothing"


def _told(told: Told) -> str:
    if told.type in _ANY:
        said = "the exception"
    else:
        said = f"*{told.says}*" if told.type in ("", "ProcessExit") else f"`{told.type}`"
    times = f" × {told.count}" if told.count > 1 else ""
    also = f", with {' and '.join(one.words for one in told.also)}" if told.also else ""
    return f"{told.severity}: {said}{times}{also}"


_ANY = ("ConnectionError", "KeyError", "LookupError", "RangeError", "RuntimeError", "ValueError")
"""Types that stand for any other."""


def test_the_page_has_the_rows_that_are_tried() -> None:
    """`python -m tests.reliability.test_ways_to_die` writes the table anew."""
    assert PAGE.read_text().split(_BEGIN)[1].split(_END)[0] == table()


def test_each_way_has_a_name_of_its_own() -> None:
    """Else the errors of one would count for another."""
    names = [program.name for program in with_doubles(PROGRAMS)]

    assert len(set(names)) == len(names)


if __name__ == "__main__":
    head, rest = PAGE.read_text().split(_BEGIN)
    PAGE.write_text(head + _BEGIN + table() + _END + rest.split(_END)[1])
