"""From a marked group to a message on a phone, and back."""

from __future__ import annotations

from tests.alerts.conftest import ANNA, Opener
from tests.conftest import ErrorFactory
from tests.standin.telegram import TelegramStandIn
from tests.waiting import aeventually


async def test_a_new_error_rings_and_a_resolve_from_the_chat_ends_it(
    open_alerts: Opener, telegram: TelegramStandIn, put: object, error: ErrorFactory
) -> None:
    """The whole way: error, message, /resolve, an answer, the edited message."""
    await open_alerts()
    await put(error())

    await aeventually(lambda: telegram.messages)
    print(telegram.messages[0].text)
    telegram.say("/resolve 1", chat_id=ANNA, user_id=ANNA, username="anna")
    await aeventually(lambda: len(telegram.messages) == 2 and telegram.messages[0].edits)
    print(telegram.messages[1].text)
    print(telegram.messages[0].text)
    assert "@anna (17)" in telegram.messages[0].text
