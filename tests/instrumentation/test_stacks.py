"""The text of a stack is Python's own, byte for byte, whatever the exception."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.instrumentation.conftest import Catch
from tocsin.exporter import raw
from tocsin.instrumentation import stacks


class OutOfStockError(Exception):
    """One with a module in its name."""


def plain() -> None:
    raise ValueError("no")


def without_a_message() -> None:
    raise OutOfStockError


def many_lines() -> None:
    raise RuntimeError(
        "first\n"
        "second"
    )  # fmt: skip


def cause() -> None:
    try:
        plain()
    except ValueError as exc:
        raise OutOfStockError("out") from exc


def context() -> None:
    try:
        cause()
    except OutOfStockError:
        {}["phone"]  # type: ignore[index]


def suppressed() -> None:
    try:
        context()
    except KeyError:
        raise RuntimeError("plain") from None


def noted() -> None:
    exc = ValueError("no")
    exc.add_note("order 42\nof today")
    raise exc


def recursion() -> None:
    def down(depth: int) -> int:
        return down(depth - 1) if depth else 1 // 0

    down(20)


def deep_recursion() -> None:
    def down() -> None:
        down()

    down()


def name_error() -> None:
    ordre = 1
    print(order, ordre)  # type: ignore[name-defined]  # noqa: F821


def attribute_error() -> None:
    "text".uper()  # type: ignore[attr-defined]


def import_error() -> None:
    from os import pathh  # type: ignore[attr-defined]  # noqa: F401


def syntax_error() -> None:
    compile("x = (\n  1 +", "shop.py", "exec")


def without_source() -> None:
    exec("def f():\n    raise ValueError('made')\nf()")


def nested() -> None:
    class Inner:
        def method(self) -> None:
            (lambda: 1 / 0)()  # noqa: PLC3002

    Inner().method()


def several_statements() -> None:
    x = [1,
         2]; y = (x[0] + x[1]  # noqa: E702
                  + x[5])  # fmt: skip
    print(y)


def group() -> None:
    def found() -> list[Exception]:
        raised: list[Exception] = []
        functions: list[Callable[[], None]] = [plain, cause, nested, recursion]
        for function in functions:
            try:
                function()
            except Exception as exc:
                raised.append(exc)
        return raised

    inner = ExceptionGroup("inner", [*found(), ExceptionGroup("innermost", [ValueError("never raised")])])
    raise ExceptionGroup("outer", [inner, *found(), ExceptionGroup("last", found())])


def wide_group() -> None:
    raise ExceptionGroup("wide", [ValueError(number) for number in range(20)])


def group_as_cause() -> None:
    try:
        group()
    except ExceptionGroup as exc:
        raise ExceptionGroup("after", [KeyError("k"), ValueError("v")]) from exc


def key_error() -> None:
    {}["телефон"]  # type: ignore[index]


CORPUS = [
    *(plain, without_a_message, many_lines, cause, context, suppressed, noted, recursion, name_error),
    *(attribute_error, import_error, syntax_error, without_source, nested, several_statements, key_error),
    *(group, wide_group, group_as_cause),
]


def text_of(exc: BaseException) -> str:
    tb = exc.__traceback__
    return stacks.stack_text(exc, stacks.safe_message(exc), tb, stacks.key_of(tb))


@pytest.mark.parametrize("function", CORPUS, ids=lambda function: str(function.__name__))
def test_the_text_is_that_of_traceback(function: Callable[[], None], catch: Catch) -> None:
    """At first sight, and again out of the cache."""
    exc = catch(function)
    expected = "".join(traceback.format_exception(exc))

    assert text_of(exc) == expected
    assert text_of(catch(function)) == expected


# What may stand around a call that fails; `traceback` marks each in a way of its own.
LINES = [
    *("fail()", "x = fail()", "return fail() or 1", "print('é', fail())", "x = 'é'; fail()", "fail() # - note"),
    *("fail()  ", "fail(\n    )", "fail(  )\n", "x = (1, \t fail())", "raise fail()", "fail.missing", "-fail"),
    *("fail() + 1", "1 - fail()", "[fail()]", "[1][fail()]", "{}['a'] if fail() else 1", "x = [fail() for _ in '1']"),
    *("raise ValueError", "raise ValueError('-')", "assert not fail", "del x", "fail ()", "x: int = fail()"),
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("before", ["    ", "\t", "    if True: "], ids=["spaces", "tab", "same line"])
def test_a_line_is_marked_as_by_traceback(line: str, before: str, catch: Catch, tmp_path: Path) -> None:
    file = tmp_path / "lines.py"
    file.write_text(f"def fail():\n    raise ValueError\n\ndef work():\n{before}{line}")
    found: dict[str, Callable[[], None]] = {}
    exec(compile(file.read_text(), str(file), "exec"), found)
    exc = catch(found["work"])

    assert text_of(exc) == "".join(traceback.format_exception(exc))


def test_a_hint_belongs_to_its_message(catch: Catch) -> None:
    """One place that looks up many names gives each its own; `traceback` knows hints from Python 3.12 on."""
    for name in ("uper", "lowr", "nothing_like_it", "uper"):
        exc = catch(partial(getattr, "", name))
        assert text_of(exc) == "".join(traceback.format_exception(exc))


def test_a_deep_recursion_is_shortened_as_python_does(catch: Catch) -> None:
    """Its repeats are counted, and its two ends are there."""
    text = text_of(catch(deep_recursion))

    assert len(text) < 10_000
    assert text.count("    down()\n") <= 8
    assert "more times]" in text
    assert text.endswith("RecursionError: maximum recursion depth exceeded\n")


def test_a_deep_recursion_is_one_place_at_any_depth(catch: Catch) -> None:
    keys = {len(stacks.key_of(catch(deep_recursion).__traceback__)) for _ in range(2)}

    assert keys == {4 * stacks.MAX_FRAMES}


def chain_of(length: int) -> Exception:
    exc = ValueError(0)
    for number in range(1, length):
        after = ValueError(number)
        after.__cause__ = exc
        exc = after
    return exc


def deep_group(depth: int) -> BaseException:
    exc: Exception = ValueError("innermost")
    for number in range(depth):
        exc = ExceptionGroup(str(number), [exc])
    return exc


def cycle() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


@pytest.mark.parametrize(
    "make",
    [
        lambda: chain_of(5000),
        lambda: deep_group(500),
        lambda: ExceptionGroup("wide", [ValueError(number) for number in range(100_000)]),
        lambda: ExceptionGroup("both", [chain_of(200) for _ in range(200)]),
        cycle,
    ],
    ids=["long chain", "deep group", "wide group", "group of chains", "cycle"],
)
def test_what_has_no_end_is_cut_in_no_time(make: Callable[[], BaseException]) -> None:
    exc = make()
    text_of(ValueError())
    begin = time.thread_time()

    text = text_of(exc)
    raw.origins_of(exc, with_members=True)

    assert time.thread_time() - begin < 0.05
    assert len(text) < 70_000


def test_a_member_that_stands_in_many_groups_ends(catch: Catch) -> None:
    """A tree with shared branches is as wide as 15 to the 10th."""
    exc: Exception = ValueError("leaf")
    for _ in range(10):
        exc = ExceptionGroup("level", [exc] * 15)
    begin = time.thread_time()

    text_of(exc)

    assert len(raw.origins_of(exc, with_members=True)) == 10
    assert time.thread_time() - begin < 0.1


def test_secrets_in_source_lines_are_masked(catch: Catch) -> None:
    def login() -> None:
        password = "geheim77"; raise ValueError("no")  # noqa: E702, F841  # fmt: skip

    assert "geheim77" not in text_of(catch(login))


def test_the_frames_say_what_is_the_team_s_own(catch: Catch) -> None:
    import json

    exc = catch(lambda: json.loads("{"))
    tb = exc.__traceback__
    frames = json.loads(stacks.link_of(exc, tb, stacks.key_of(tb)).frames_json)

    assert [frame["in_app"] for frame in frames if frame["module"].startswith("json")] == [False] * 3
    assert frames[1]["in_app"] is True
    assert frames[1]["line"] == sys._getframe().f_lineno - 6
    assert frames[-1]["function"] == "JSONDecoder.raw_decode"
