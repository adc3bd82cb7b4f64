"""`protect` and `track_error`: what users call, and what they may rely on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import tocsin
from tests.instrumentation.conftest import Watched
from tocsin.model import Severity


def test_a_protected_function_records_and_raises_the_same(watched: Watched) -> None:
    exc = ValueError("no")

    @tocsin.protect(category="amocrm", severity="critical", context={"lead_id": "7"})
    def push(number: int) -> int:
        if number == 0:
            raise exc
        return number

    assert push(7) == 7
    with pytest.raises(ValueError) as caught:
        push(0)

    assert caught.value is exc
    row = watched.row()
    assert (row.category, row.severity, row.handled, row.mechanism) == ("amocrm", "critical", True, "protect")
    assert row.context["lead_id"] == "7"


async def test_a_protected_coroutine_function_stays_one(unwatched: Watched) -> None:
    unwatched.init()

    @tocsin.protect()
    async def push(number: int) -> int:
        return 1 // number

    assert inspect.iscoroutinefunction(push)
    assert await push(1) == 1
    with pytest.raises(ZeroDivisionError):
        await push(0)
    assert unwatched.row().exception_type == "ZeroDivisionError"


def test_a_signature_is_kept() -> None:
    def plain(a: int, /, b: str = "x", *args: Any, c: bool, **more: Any) -> dict[str, int]:
        """What it does."""
        return {}

    guarded = tocsin.protect()(plain)

    assert inspect.signature(guarded) == inspect.signature(plain)
    assert (guarded.__name__, guarded.__doc__) == ("plain", "What it does.")


async def test_blocks_are_protected(watched: Watched) -> None:
    with pytest.raises(KeyError), tocsin.protect(severity="low"):
        raise KeyError("sync")
    with pytest.raises(KeyError):
        async with tocsin.protect():
            raise KeyError("async")

    assert [row.message for row in watched.rows()] == ["'sync'", "'async'"]


def test_methods_are_protected(watched: Watched) -> None:
    class Shop:
        @tocsin.protect()
        def order(self) -> None:
            raise LookupError(type(self).__name__)

        @classmethod
        @tocsin.protect()
        def close(cls) -> str:
            return cls.__name__

    assert Shop.close() == "Shop"
    with pytest.raises(LookupError):
        Shop().order()
    assert watched.row().message == "Shop"


def test_a_generator_is_refused_at_once() -> None:
    """It would be left before anything in it runs."""

    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"with tocsin\.protect\(\)"):
        tocsin.protect()(numbers)


def test_nested_protection_is_one_error(watched: Watched) -> None:
    @tocsin.protect(category="inner")
    def inner() -> None:
        raise ValueError("no")

    @tocsin.protect(severity="critical")
    def outer() -> None:
        inner()

    with pytest.raises(ValueError):
        outer()

    assert (watched.row().category, watched.row().severity) == ("inner", "critical")


def test_a_text_can_be_tracked(watched: Watched) -> None:
    """Where it is said stands for the stack that it does not have."""
    error_id = tocsin.track_error("out of paper", "low", "printer", {"floor": 3})

    row = watched.row()
    assert (row.id, row.message, row.severity, row.category) == (error_id, "out of paper", "low", "printer")
    assert "test_a_text_can_be_tracked" in row.stack
    assert row.context["floor"] == 3


def test_an_exception_that_was_never_raised_has_the_stack_of_who_tells(watched: Watched) -> None:
    tocsin.track_error(ValueError("never raised"))

    row = watched.row()
    assert row.stack.startswith("Traceback (most recent call last):\n")
    assert "in test_an_exception_that_was_never_raised" in row.stack
    assert row.stack.endswith("ValueError: never raised\n")


@pytest.mark.parametrize("severity", list(Severity))
def test_an_explicit_severity_holds(severity: Severity, watched: Watched) -> None:
    tocsin.track_error(ValueError("no"), severity)

    assert watched.row().severity == severity


@pytest.mark.parametrize("severity", ["hihg", "", 7, object()])
def test_a_severity_that_is_none_is_left_out(severity: Any, watched: Watched) -> None:
    """A typing mistake must not hurt a program."""
    tocsin.track_error(ValueError("no"), severity)

    assert watched.row().severity == "high"


@pytest.mark.parametrize("category", ["x" * 1000, 7, "два слова", "a\0b"])
def test_any_category_is_taken(category: Any, watched: Watched) -> None:
    exc = ValueError("no")
    tocsin.track_error(exc, category=category)
    tocsin.track_error(exc, category=category)

    assert watched.row().category == watched.row().category.strip() != ""
    assert len(watched.row().category) < 60


@pytest.mark.parametrize("error", [None, 7, b"bytes", ["a", "list"]])
def test_what_is_no_error_is_taken_as_text(error: Any, watched: Watched) -> None:
    tocsin.track_error(error)

    assert watched.row().message == str(error)


def test_before_init_nothing_happens(unwatched: Watched) -> None:
    """An id comes back all the same, so that a program may print it."""
    assert len(tocsin.track_error(ValueError("no"))) == 36
    with pytest.raises(ValueError), tocsin.protect(), tocsin.context(a=1):
        raise ValueError("no")

    assert not unwatched.spool.exists()


def test_protect_needs_no_parentheses(watched: Watched) -> None:
    @tocsin.protect
    def push() -> None:
        raise ValueError("bare")

    with pytest.raises(ValueError, match="bare"):
        push()

    assert watched.row().message == "bare"
