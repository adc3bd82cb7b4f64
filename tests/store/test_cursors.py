"""Places in a list come back as they were given, or not at all."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tocsin.failures import BadInput
from tocsin.store import cursors

MOMENT = datetime(2026, 3, 14, 9, 26, 53, 589793, UTC)
PLACE = cursors.encode(MOMENT, "0190d0c0-0000-7000-8000-000000000000")


@pytest.mark.parametrize("moment", [MOMENT, MOMENT.astimezone(timezone(timedelta(hours=3)))])
@pytest.mark.parametrize("row_id", ["0190d0c0-0000-7000-8000-000000000000", "9f0c", "№ 7", ""])
def test_a_place_comes_back_as_it_was(moment: datetime, row_id: str) -> None:
    """To the microsecond, with its zone."""
    assert cursors.decode(cursors.encode(moment, row_id)) == (moment, row_id)


def test_a_place_stands_in_an_address_as_it_is() -> None:
    """Nobody has to escape it."""
    assert set(PLACE) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def _made(content: object) -> str:
    return base64.urlsafe_b64encode(b"123456" + json.dumps(content).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        *("", "?", "AAAA", "é", "%00", "A" * 100_000, "[" * 399, PLACE[1:], PLACE[:-1], PLACE + "A", PLACE + "="),
        *(PLACE[:at] + ("A" if PLACE[at] != "A" else "B") + PLACE[at + 1 :] for at in (0, 7, 20, 60)),
        *map(_made, (None, [], ["2026-03-14T09:00:00", "x"], [MOMENT.isoformat(), "x"], [1, 2], {"a": 1, "b": 2})),
    ],
)
def test_what_no_list_has_given_is_refused_by_name(text: str) -> None:
    """A wrong page would be worse than none."""
    with pytest.raises(BadInput, match="before"):
        cursors.decode(text)


def test_a_time_without_a_zone_is_refused() -> None:
    """Also when its check sum is right: no column could be compared with it."""
    with pytest.raises(BadInput, match="before"):
        cursors.decode(cursors.encode(MOMENT.replace(tzinfo=None), "x"))


@pytest.mark.parametrize("number", range(100))
def test_a_place_is_never_taken_for_an_option(number: int) -> None:
    """`tocsin errors --before …` gets it as it is."""
    assert cursors.encode(datetime(2026, 1, 1, tzinfo=UTC), str(number))[0].isalpha()
