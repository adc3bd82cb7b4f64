"""Which errors are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.exporter.fingerprint import culprit, fingerprint, template, title
from tocsin.model import Frame


def _frame(module: str, function: str, text: str = "", *, own: bool = True, line: int = 1, file: str = "x.py") -> Frame:
    return Frame(module=module, function=function, file=file, line=line, text=text, in_app=own)


ORDER = [
    _frame("starlette.routing", "app", "await response(scope)", own=False),
    _frame("shop.api", "post_order", "return create_order(cart)"),
    _frame("shop.orders", "create_order", "phone = customer['phone']"),
]


def _of(frames: list[Frame], kind: str | None = "KeyError", message: str = "'phone'") -> str:
    return fingerprint(exception_type=kind, frames=frames, message=message)


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        ("1-1278b5bd0e3a0fc39798468362165015", {"exception_type": "KeyError", "frames": ORDER, "message": "'phone'"}),
        (
            "1-83e9c6ce6ba31e6f3091128e5465ef76",
            {"exception_type": "httpx.ConnectError", "frames": ORDER[:1], "message": "refused"},
        ),
        (
            "1-a38639563ecb53d007f0f02d5738d69e",
            {"exception_type": None, "frames": [], "message": "order 17 late", "logger": "shop"},
        ),
        (
            "1-152bcecb40ee2a194aec763fd120d9a4",
            {"exception_type": "RecursionError", "frames": [*ORDER, *ORDER], "message": "depth"},
        ),
        (
            "1-9eaf2225bbdd16cfaf8e5fbcaca99c6b",
            {"exception_type": "js.TypeError", "frames": [], "message": "x is 'y'", "place": "/orders"},
        ),
    ],
)
def test_version_1_stays_as_it_is(expected: str, facts: dict[str, object]) -> None:
    """Another value makes every stored error new and rings for all of them: then it is version 2."""
    assert fingerprint(**facts) == expected  # type: ignore[arg-type]


@given(line=st.integers(1, 10**6), file=st.text(max_size=40), spaces=st.sampled_from([" ", "  ", "\t"]))
def test_moved_lines_and_another_folder_change_nothing(line: int, file: str, spaces: str) -> None:
    """A deploy makes no old error new."""
    moved = [replace(frame, line=line, file=file, text=frame.text.replace(" ", spaces)) for frame in ORDER]

    assert _of(moved) == _of(ORDER)


@given(st.text(max_size=100))
def test_with_frames_the_message_does_not_matter(message: str) -> None:
    """Ids in messages split no group."""
    assert _of(ORDER, message=message) == _of(ORDER)


@given(kind=st.text(min_size=1, max_size=30).filter(lambda text: text != "KeyError"))
def test_another_type_is_another_error(kind: str) -> None:
    """Two faults of one line are two."""
    assert _of(ORDER, kind=kind) != _of(ORDER)


@pytest.mark.parametrize("change", [{"module": "shop.other"}, {"function": "other"}, {"text": "phone = None"}])
def test_another_place_is_another_error(change: dict[str, str]) -> None:
    """Module, function and the raising line's text count."""
    assert _of([*ORDER[:2], replace(ORDER[2], **change)]) != _of(ORDER)  # type: ignore[arg-type]


def test_a_librarys_frames_count_only_where_the_team_has_none() -> None:
    """An upgrade of a library splits no group."""
    upgraded = [replace(ORDER[0], function="_app"), *ORDER[1:]]

    assert _of(upgraded) == _of(ORDER)
    assert _of(upgraded[:1]) != _of(ORDER[:1])


@pytest.mark.parametrize("depths", [(10, 900), (11, 12)])
def test_a_recursion_is_one_error_at_any_depth(depths: tuple[int, int]) -> None:
    """Where in its round the stack ended is chance."""
    around = [_frame("shop.tree", "walk", "visit(node)"), _frame("shop.tree", "visit", "walk(child)")]
    stacks = [[ORDER[1], *(around * depth)[:depth]] for depth in depths]

    assert _of(stacks[0], "RecursionError") == _of(stacks[1], "RecursionError")


def test_repeats_on_the_way_to_another_error_are_one_place() -> None:
    """The depth of a tree is data."""
    walk = _frame("shop.tree", "walk", "walk(child)")

    assert _of([*ORDER[:2], *[walk] * 3, ORDER[2]]) == _of([*ORDER[:2], *[walk] * 40, ORDER[2]])


def test_only_the_innermost_30_of_the_teams_frames_count() -> None:
    """A stack that was cut at its outer end stays the same error."""
    frames = [_frame("shop.deep", f"f{number}", "x") for number in range(60)]

    assert _of(frames) == _of(frames[30:])
    assert _of(frames) != _of(frames[31:])


def test_a_comprehension_is_the_function_around_it() -> None:
    """Python 3.12 gives it no frame of its own any more."""
    inside = _frame("shop.orders", "create_order.<locals>.<listcomp>", ORDER[2].text)

    assert _of([*ORDER, inside]) == _of(ORDER)


def test_a_module_started_or_imported_is_the_same() -> None:
    """``python shop.py`` and ``uvicorn shop:app`` run the same code."""
    started = _frame("__main__", "main", "run()", file="/srv/a/shop.py")

    assert _of([started]) == _of([_frame("shop", "main", "run()", file="/srv/b/shop.py")])


def test_parts_do_not_run_together() -> None:
    """A name that holds a separator makes no two errors one."""
    assert _of([_frame("a", "b:c")]) != _of([_frame("a", "b"), _frame("c", "")])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order 17 not found", "order 4711 not found"),
        ("no 'phone' in cart", "no 'e-mail' in cart"),
        ("user a@b.example is gone", "user anna.k+x@c.example is gone"),
        ("at 2024-01-01T10:00:00Z", "at 2025-12-31T23:59:59.123+00:00"),
        ("id 3f9d2c1a-0000-4000-8000-3f9d2c1a0000", "id 00000000-0000-4000-8000-3f9d2c1a0001"),
        ("<Order object at 0x7f1>", "<Order object at 0x7fa2bc>"),
        ("GET https://h/orders/17?x=1 failed", "GET https://h/orders/18?y=2 failed"),
        ("ids: 1, 2, 3", "ids: 4, 5"),
        ("key sk_9aK2", "key zz_1bQ7"),
        ('cut "off here', 'cut "elsewhere and longer'),
    ],
)
def test_what_varies_in_a_message_is_taken_out(one: str, other: str) -> None:
    """Errors without a stack group by their message."""
    assert template(one) == template(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order late", "order lost"),
        ("GET https://h/orders failed", "GET https://h/users failed"),
        ("GET https://h/orders failed", "GET https://g/orders failed"),
        ("can't open", "can't close"),
    ],
)
def test_what_a_message_says_stays(one: str, other: str) -> None:
    """Different faults stay apart."""
    assert template(one) != template(other)


def test_logger_and_place_part_errors_without_frames() -> None:
    """The same text from two parts of a program is two errors."""
    facts = {"exception_type": None, "frames": (), "message": "late"}

    assert fingerprint(**facts, logger="a") != fingerprint(**facts, logger="b")  # type: ignore[arg-type]
    assert fingerprint(**facts, place="a") != fingerprint(**facts, place="b")  # type: ignore[arg-type]


_CHARACTERS = st.characters(exclude_categories=["Cs"])
"""All that UTF-8 has, as by default, but without trying each whether it has."""


@given(st.text(_CHARACTERS), st.text(_CHARACTERS), st.text(_CHARACTERS))
def test_no_text_makes_it_fail(kind: str, message: str, module: str) -> None:
    """Lone surrogates and NUL included; the value always looks the same."""
    for frames in ([], [_frame(module + "\ud800", kind, message)]):
        value = fingerprint(exception_type=kind, frames=frames, message=message + "\udfff\x00")
        assert value.startswith("1-")
        assert len(value) == 34


def test_a_title_is_one_short_line() -> None:
    """What people read in a list and on a phone."""
    assert title("KeyError", "'phone'") == "KeyError: 'phone'"
    assert title("shop.errors.f.<locals>.OutOfStock", "two\nlines") == "OutOfStock: two lines"
    assert title(None, "order late") == "order late"
    assert title("KeyError", "") == "KeyError"
    assert title(None, "") == "Error"
    assert len(title("KeyError", "x" * 10_000)) == 200


def test_the_culprit_is_the_teams_own_innermost_frame() -> None:
    """Not the library's that raised."""
    assert culprit([*ORDER, ORDER[0]]) == "shop.orders in create_order"
    assert culprit(ORDER[:1]) is None


def test_a_stack_without_source_lines_is_told_apart_by_what_was_said() -> None:
    """JavaScript: two routes are two functions without a name, and a stack shows no line of source."""

    def thrown(message: str, *, file: str = "/app/src/shop.js") -> str:
        frames = [Frame(module="shop", function="<anonymous>", file=file, line=3, in_app=True)]
        return fingerprint(exception_type="Error", frames=frames, message=message)

    assert thrown("no stock") != thrown("no money")
    assert thrown("order 1 is lost") == thrown("order 2 is lost")
    python = "/app/shop.py"
    assert thrown("no stock", file=python) == thrown("no money", file=python)


def test_a_stack_that_begins_anywhere_is_known_by_its_end() -> None:
    """Which of the spans that an exception of Python passed tells of it first is chance."""
    inner = Frame(
        module="shop", function="charge", file="/app/shop.py", line=3, text="raise Refused(order)", in_app=True
    )
    outer = Frame(module="api", function="pay", file="/app/api.py", line=9, text="charge(order)", in_app=True)

    def seen(*frames: Frame, message: str = "order 1") -> str:
        return fingerprint(exception_type="Refused", frames=frames, message=message, is_partial=True)

    assert seen(inner) == seen(outer, inner) == seen(outer, inner, message="order 2")
    assert seen(inner) != seen(inner, message="no money left")
    assert seen(inner) != seen(outer)
