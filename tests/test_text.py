"""Text that every database, terminal and chat can take; and ids that sort by time."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tocsin.ids import uuid7
from tocsin.text import clean, one_line, shorten

ANYTHING = st.text(alphabet=st.characters(codec=None), max_size=300)


@given(ANYTHING)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(ANYTHING)
def test_clean_text_can_be_stored_and_shown(text: str) -> None:
    cleaned = clean(text)

    cleaned.encode("utf-8")
    assert not re.search("[\x00\x1b\u202e\u2028]", cleaned)


@given(ANYTHING, st.integers(1, 100))
def test_short_text_keeps_its_length(text: str, limit: int) -> None:
    assert len(shorten(text, limit)) <= max(limit, min(len(text), limit))
    assert shorten(text, 1000) == text


def test_what_is_left_out_is_counted() -> None:
    assert "left out" in shorten("x" * 10_000, 200)
    assert shorten("start" + "x" * 10_000 + "end", 200).startswith("start")
    assert shorten("start" + "x" * 10_000 + "end", 200).endswith("end")


@given(ANYTHING)
def test_one_line_is_one_line(text: str) -> None:
    assert "\n" not in one_line(text) and len(one_line(text)) <= 200


def test_ids_are_uuids_that_sort_by_time() -> None:
    ids = [uuid7(time_ns) for time_ns in range(10**18, 10**18 + 10**9, 10**6)]

    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one) for one in ids)
