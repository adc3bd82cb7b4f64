"""Find out chat and user for a new bot: wait until somebody says /start to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from tocsin import clock
from tocsin.alerts.channels import Refused, Unreachable
from tocsin.alerts.scheduler import test_message
from tocsin.alerts.telegram import Api, Telegram
from tocsin.settings import Settings
from tocsin.text import clean, one_line

_JUST_NOW = timedelta(minutes=1)


async def pair(settings: Settings, say: Callable[[str], None], timeout_s: float) -> tuple[int, int]:
    """
    Wait for ``/start``, and send a test to the chat that it comes from.

    Args:
        settings: with the bot's token.
        say: takes the lines for the person at the terminal.
        timeout_s: how long to wait.

    Returns:
        The ids of the chat and of the user.

    Raises:
        TimeoutError: nobody said it in time.
        DeliveryError: Telegram cannot be reached, or refuses the token.
    """
    api = Api(settings)
    deadline = time.monotonic() + timeout_s
    began = clock.now() - _JUST_NOW
    try:
        me = await api.call(lambda bot: bot.get_me())
        await api.call(lambda bot: bot.delete_webhook(drop_pending_updates=False))
        say(f"The bot is @{me.username}. Open https://t.me/{me.username} and press Start (or write /start in a group).")
        offset: int | None = None
        while (left_s := deadline - time.monotonic()) > 0:
            wait_s = int(max(min(left_s, 10), 1))

            try:
                updates = await api.updates(offset, wait_s)
            except Unreachable as problem:
                say(f"Telegram cannot be reached ({problem}); trying again.")
                await asyncio.sleep(min(2.0, left_s))
                continue
            for update in updates:
                offset = update.update_id + 1
                message = update.message
                if message is None or message.from_user is None or not (message.text or "").startswith("/start"):
                    continue
                if message.date < began:
                    continue  # Telegram keeps them for a day: anybody may have found the bot
                chat_id, user_id = message.chat.id, message.from_user.id
                await api.updates(offset, 0)  # confirms it
                say(f"/start came from {one_line(clean(message.from_user.full_name), 60)} ({user_id}).")
                await _try(replace(settings, telegram_chat_ids=(chat_id,)), chat_id)
                return chat_id, user_id
    finally:
        await api.close()
    raise TimeoutError(f"nobody wrote /start to the bot within {timeout_s:g} s")


async def _try(settings: Settings, chat_id: int) -> None:
    channel = Telegram(settings)
    try:
        await channel.send(str(chat_id), test_message(settings))
    except Refused as problem:
        raise Refused(f"the chat {chat_id} takes no message: {problem}") from None
    finally:
        await channel.close()
