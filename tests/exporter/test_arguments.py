"""Arguments as JSON, and which of them are still what they were."""

from __future__ import annotations

import json
import math
import uuid
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

import pytest

from tocsin.exporter import arguments

SECRET = "hunter2-of-anna"


class Word(str):
    """Equal to a text, and none."""


class Level(IntEnum):
    LOW = 1


class Colour(StrEnum):
    RED = "red"


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


def test_plain_arguments_stay_what_they_are() -> None:
    args = ["lead", 7, -2.5, True, None, "два слова\n", {"phones": ["+7 900", []], "more": {"deep": {"er": 1}}}]
    kwargs = {"note": "x" * 10_000}

    found, changed = arguments.encode(args, kwargs)

    assert json.loads(json.dumps(found)) == {"args": args, "kwargs": kwargs}
    assert changed == []


CYCLE: list[Any] = [1]
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (("a", 1), "args.0"),
        ({"a": (1,)}, "args.0.a"),
        ({1: "a"}, "args.0.1"),
        ([1, {2}], "args.0.1"),
        (CYCLE, "args.0.1"),
        (list(range(60)), "args.0"),
        (dict.fromkeys(map(str, range(60))), "args.0"),
        ([[[[[[[[]]]]]]]], "args.0.0.0.0.0"),
        (2**64, "args.0"),
        (math.nan, "args.0"),
        (b"bytes", "args.0"),
        (Word("text"), "args.0"),
        (Level.LOW, "args.0"),
        (Colour.RED, "args.0"),
        (datetime(2026, 1, 1, tzinfo=UTC), "args.0"),
        (uuid.UUID(int=7), "args.0"),
        (Hostile(), "args.0"),
        ([Hostile()], "args.0.0"),
        ("a\0b", "args.0"),
        ("\ud800", "args.0"),
        ({"password": SECRET}, "args.0.password"),
        ({"headers": [["Authorization", SECRET]]}, "args.0.headers.0.1"),
        (f"postgresql://anna:{SECRET}@db/shop", "args.0"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_or_must_not_is_named(value: Any, place: str) -> None:
    found, changed = arguments.encode([value], {})

    assert changed == [place]
    assert SECRET not in json.dumps(found)


def test_a_parameter_s_name_tells_a_secret() -> None:
    """Also of what is given without its name."""
    found, changed = arguments.encode(["anna", SECRET, SECRET], {"token": SECRET}, ["user", "passwords"])

    assert found == {"args": ["anna", "[scrubbed]", "[scrubbed]"], "kwargs": {"token": "[scrubbed]"}}
    assert changed == ["args.1", "args.2", "kwargs.token"]


@pytest.mark.parametrize("args", [["x" * 20_000], ["я" * 5_000], ["a" * 9_000, "b" * 9_000]])
def test_what_is_too_large_is_left_out_as_a_whole(args: list[str]) -> None:
    found, changed = arguments.encode(args, {"more": 1})

    assert len(json.dumps(found)) <= arguments.MOST
    assert changed
    assert all(place == "arguments" or place.startswith("args.") for place in changed)


def test_tidied_again_they_stay() -> None:
    found, _ = arguments.encode([("a", SECRET), b"\xff", {"token": 1, "x" * 400: 2}, "y" * 9000], {"n": {1: [2]}})

    assert arguments.tidy(found) == (found, [])


@pytest.mark.parametrize("content", [{}, {"args": None, "kwargs": {}}, {"args": {}, "kwargs": []}, {"args": 7}])
def test_what_nobody_calls_with_counts_as_left_out(content: dict[str, Any]) -> None:
    assert arguments.tidy(content) == ({"args": [], "kwargs": {}}, ["arguments"])
