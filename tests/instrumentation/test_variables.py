"""Local variables: only when asked for, only of the team's own frames, and nothing in them that may not be kept."""

# ruff: noqa: F841

from __future__ import annotations

import asyncio
import collections
import datetime
import decimal
import enum
import json
import threading
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pytest

import tocsin
from tests.exporter.test_scrub import BOT, JWT, PEM
from tests.instrumentation.conftest import Watched
from tests.instrumentation.test_loop import has_answered, until_told
from tests.processes import rows_of, run_program
from tocsin.instrumentation import variables

SECRET = "hUnt3r-2x"


@pytest.fixture
def keeping(unwatched: Watched) -> Watched:
    unwatched.init(locals=True)
    return unwatched


def record(function: Callable[..., object], *given: Any) -> None:
    try:
        function(*given)
    except Exception as error:
        tocsin.track_error(error)


def values(row: Any, function: str | None = None) -> dict[str, str]:
    """The variables of one frame: the innermost of all that have any."""
    frames = [one for one in row.context["tocsin.frames"] if "vars" in one]
    if function is not None:
        frames = [one for one in frames if one["function"].endswith(function)]
    found: dict[str, str] = frames[-1]["vars"]
    return found


def shown(keeping: Watched, value: object) -> str:
    """One value as it is kept."""

    def fail(value: object) -> None:
        raise ValueError("broken")

    record(fail, value)
    return values(keeping.row())["value"]


def test_without_asking_there_are_none(unwatched: Watched) -> None:
    unwatched.init()

    def fail(order: int) -> None:
        raise ValueError("broken")

    record(fail, 7)

    assert [one for one in unwatched.row().context["tocsin.frames"] if "vars" in one] == []


def test_they_are_of_the_own_frames_from_the_innermost_on(keeping: Watched) -> None:
    def pay(order: int) -> None:
        total = order * 2
        json.loads(f"not {total}")

    def checkout(cart: list[int]) -> None:
        pay(cart[0])

    record(checkout, [7, 8])

    row = keeping.row()
    assert values(row, "pay") == {"order": "7", "total": "14"}
    assert values(row, "checkout")["cart"] == "[7, 8]"
    assert [one["function"] for one in row.context["tocsin.frames"] if "vars" in one and not one["in_app"]] == []


def test_of_a_deep_stack_the_innermost_have_theirs(keeping: Watched) -> None:
    def fall(depth: int) -> None:
        if depth == 300:
            raise ValueError("deep")
        fall(depth + 1)

    record(fall, 0)

    found = [one["vars"]["depth"] for one in keeping.row().context["tocsin.frames"] if "vars" in one]
    assert found == ["296", "297", "298", "299", "300"]


def test_an_error_that_was_never_raised_has_those_of_whoever_reports_it(keeping: Watched) -> None:
    def report(order: int) -> None:
        tocsin.track_error(ValueError("never raised"))

    report(7)

    assert values(keeping.row(), "report")["order"] == "7"


class Color(enum.Enum):
    RED = 1


class Count(int):
    def __repr__(self) -> str:
        raise AssertionError("asked")

    __str__ = __repr__


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None"),
        (True, "True"),
        (1.5, "1.5"),
        ("text", "'text'"),
        (b"bytes", "b'bytes'"),
        (b"\xff\xfe", "b'<2 bytes>'"),
        (Count(7), "7"),
        (10**5000, "0x"),
        (Color.RED, f"{__name__}.Color.RED"),
        ([1, [2, [3, [4]]]], "[1, [2, [3, […]]]]"),
        ((1, "a"), "(1, 'a')"),
        (Point(1, 2), "(1, 2)"),
        ({"a": {1}}, "{'a': {1}}"),
        (collections.OrderedDict(a=1), "{'a': 1}"),
        (collections.deque([1]), "deque([1])"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …]"),
        (decimal.Decimal("1.50"), "decimal.Decimal(1.50)"),
        (datetime.date(2026, 1, 2), "datetime.date(2026-01-02)"),
        (uuid.UUID(int=0), "uuid.UUID(00000000-0000-0000-0000-000000000000)"),
        (PurePosixPath("/srv"), "pathlib.PurePosixPath(/srv)"),
        (threading.Event(), "<threading.Event object>"),
        (json, "<module json>"),
        (dict, "<class dict>"),
        (record, "<function record>"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_value_is_shown_as_python_would_write_it(value: object, expected: str, keeping: Watched) -> None:
    assert shown(keeping, value).startswith(expected)


class Lazy:
    """Loads something as soon as anybody looks at it; a proxy of a web framework does."""

    asked: ClassVar[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        Lazy.asked.append(name)
        raise AssertionError(name)

    def _ask(self, *_: object) -> Any:
        Lazy.asked.append("called")

    __class__ = property(_ask)
    __repr__ = __str__ = __len__ = __iter__ = __bool__ = __hash__ = __eq__ = _ask


class LazyDict(dict[str, str]):
    def items(self) -> Any:
        raise AssertionError("asked")

    __iter__ = __getitem__ = __len__ = keys = items  # type: ignore[assignment]


def test_nothing_is_asked_of_an_object(keeping: Watched) -> None:
    Lazy.asked.clear()

    found = shown(keeping, [Lazy(), LazyDict(a="b")])

    assert found == f"[<{__name__}.Lazy object>, {{'a': 'b'}}]"
    assert Lazy.asked == []


def test_a_cycle_has_an_end(keeping: Watched) -> None:
    cycle: list[object] = [1]
    cycle.append(cycle)

    assert shown(keeping, cycle) == "[1, […]]"


def test_they_are_bounded(keeping: Watched) -> None:
    """Each, those of a frame, and all of an error; what is closest to it goes first."""

    def fail(**given: str) -> None:
        a = b = c = d = e = f = g = h = i = j = k = l = m = n = o = p = q = r = s = t = u = v = "é" * 10**6  # noqa: E741
        raise ValueError("broken")

    def outer(text: str) -> None:
        fail(text=text)

    record(outer, "x" * 10**7)

    row = keeping.row()
    found = [one["vars"] for one in row.context["tocsin.frames"] if "vars" in one]
    assert len(json.dumps(found)) <= variables.ALL_BYTES + 100
    assert len(found[-1]) <= variables.NAMES
    assert all(len(text) <= variables.VALUE_CHARS for one in found for text in one.values())


def test_no_planted_secret_reaches_the_spool(keeping: Watched, tmp_path: Path) -> None:
    """Neither by its name, nor by its shape, nor by what it stands beside; the database is away, so it all waits."""

    def fail() -> None:
        password = SECRET
        api_key = [SECRET]
        settings = {"db_password": SECRET, "nested": {"token": SECRET}, b"Authorization": SECRET}
        headers = [(b"authorization", SECRET.encode()), ["x-api-key", SECRET]]
        command = ["mysql", "--password", SECRET, "shop"]
        url = f"postgresql://shop:{SECRET}@db/shop"
        query = f"password={SECRET}&a=1"
        said = f"Bearer {JWT}"
        bot = BOT
        key = PEM
        card = 4111111111111111
        cards = ["4111 1111 1111 1111"]
        as_bytes = f"password: {SECRET}".encode()
        raise ValueError("broken")

    (tmp_path / "file").write_text("")
    keeping.init(locals=True, database_url=f"sqlite:///{tmp_path}/file/tocsin.db")
    record(fail)

    tocsin.shutdown(0.2)
    written = "".join(path.read_text("utf-8") for path in keeping.spool.glob("*.seg"))
    assert '"vars":{"password":"[scrubbed]"' in written
    assert '"cards"' in written and '"as_bytes"' in written
    for secret in (SECRET, JWT, BOT, "MIIEowIBAAKCAQEA75", "4111111111111111", "4111 1111 1111 1111"):
        assert secret not in written


def test_of_a_module_only_what_is_data(tmp_path: Path, sqlite_url: str) -> None:
    code = """
import json
import collections as things
from json import loads
LIMIT = 7
class Shop: pass
def helper(): pass
raise ValueError("broken")
"""
    run_program(tmp_path, code, sqlite_url, environ={"TOCSIN_LOCALS": "1"})

    (row,) = rows_of(sqlite_url)
    assert values(row) == {"LIMIT": "7"}


def test_of_a_loop_that_is_blocked_too(unwatched: Watched) -> None:
    unwatched.init(locals=True, loop_blocked_s=0.3)

    async def wait(order: int) -> None:
        await has_answered()
        until_told().wait()

    asyncio.run(wait(7))

    assert values(unwatched.row(), "wait")["order"] == "7"
