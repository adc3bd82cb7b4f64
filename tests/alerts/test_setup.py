"""Finding out chat and user for a new bot."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.alerts.conftest import ANNA
from tests.standin.telegram import TelegramStandIn
from tests.waiting import aeventually
from tocsin.alerts.channels import Refused
from tocsin.alerts.setup import pair
from tocsin.settings import Settings


async def test_whoever_says_start_is_paired_and_gets_a_test(settings: Settings, telegram: TelegramStandIn) -> None:
    """Other words do not count."""
    said: list[str] = []
    pairing = asyncio.create_task(pair(settings, said.append, 10))
    await aeventually(lambda: said)
    telegram.say("hello", chat_id=5, user_id=5)
    telegram.say("/start", chat_id=ANNA, user_id=ANNA)

    assert await pairing == (ANNA, ANNA)
    assert "@tocsin_test_bot" in said[0]
    assert [sent.chat_id for sent in telegram.messages] == [ANNA]


async def test_who_found_the_bot_before_is_not_paired(settings: Settings, telegram: TelegramStandIn) -> None:
    """Telegram keeps what was written for a day; whoever sets the bot up writes now."""
    telegram.say("/start", chat_id=666, user_id=666, date=int(time.time()) - 3600)
    telegram.say("/start", chat_id=ANNA, user_id=ANNA)

    assert await pair(settings, lambda line: None, 10) == (ANNA, ANNA)


async def test_nobody_comes(settings: Settings) -> None:
    """It ends and says so."""
    with pytest.raises(TimeoutError, match="/start"):
        await pair(settings, lambda line: None, 0.5)


async def test_a_wrong_token_is_said_at_once(settings: Settings, telegram: TelegramStandIn) -> None:
    """Before anybody waits."""
    telegram.token = "another"
    with pytest.raises(Refused, match="TOCSIN_TELEGRAM_TOKEN"):
        await pair(settings, lambda line: None, 5)
