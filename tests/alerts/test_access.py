"""Who may do what in a chat, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from tests.alerts.samples import plain_settings
from tocsin.alerts.access import CHANNEL_ANONYMOUS, GROUP_ANONYMOUS, TELEGRAM_ITSELF, Access, Sender, access

ANNA, BEN, TEAM, ELSEWHERE = 17, 18, -100500, -100600
STRANGER, READ, ACT = Access


def sender(user_id: int | None, chat_id: int, **values: Any) -> Sender:
    return Sender(user_id=user_id, chat_id=chat_id, chat_type="private" if chat_id > 0 else "supergroup", **values)


@pytest.mark.parametrize(
    ("who", "chats", "users", "may"),
    [
        # Nothing is set up: nobody is known.
        (sender(ANNA, ANNA), (), (), STRANGER),
        # A one-to-one chat that gets alerts may act, when nobody is named.
        (sender(ANNA, ANNA), (ANNA,), (), ACT),
        (sender(BEN, BEN), (ANNA,), (), STRANGER),
        # In a group only who is named.
        (sender(ANNA, TEAM), (TEAM,), (), READ),
        (sender(ANNA, TEAM), (TEAM,), (ANNA,), ACT),
        (sender(BEN, TEAM), (TEAM,), (ANNA,), READ),
        # Both the person and the chat must be known.
        (sender(ANNA, ELSEWHERE), (TEAM,), (ANNA,), STRANGER),
        (sender(ANNA, ANNA), (TEAM,), (ANNA,), STRANGER),
        (sender(ANNA, ANNA), (ANNA, TEAM), (BEN,), READ),
        # A one-to-one chat is with oneself.
        (sender(BEN, ANNA), (ANNA,), (), READ),
        # Those who are nobody, even when somebody has put them on the list.
        (sender(GROUP_ANONYMOUS, TEAM), (TEAM,), (GROUP_ANONYMOUS,), READ),
        (sender(CHANNEL_ANONYMOUS, TEAM), (TEAM,), (CHANNEL_ANONYMOUS,), READ),
        (sender(TELEGRAM_ITSELF, TEAM), (TEAM,), (TELEGRAM_ITSELF,), READ),
        (sender(None, TEAM), (TEAM,), (ANNA,), READ),
        (sender(ANNA, TEAM, is_anonymous=True), (TEAM,), (ANNA,), READ),
    ],
)
def test_who_may_do_what(who: Sender, chats: tuple[int, ...], users: tuple[int, ...], may: Access) -> None:
    """Person and chat are both looked at; what is not allowed is forbidden."""
    assert access(who, plain_settings(telegram_chat_ids=chats, telegram_user_ids=users)) == may


def test_a_chat_that_moved_is_still_allowed() -> None:
    """A group that became a supergroup has a new id, and the same people."""
    settings = plain_settings(telegram_chat_ids=(-5,), telegram_user_ids=(ANNA,))

    assert access(sender(ANNA, TEAM), settings, moved_chats=[TEAM]) == Access.ACT


def test_a_name_cannot_forge_the_audit() -> None:
    """Names are chosen by their owners."""
    assert sender(ANNA, ANNA, name="x\n\u202eroot").label == "x \\u202eroot (17)"
