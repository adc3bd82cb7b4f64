"""Whatever Telegram does, every alert arrives; twice at most when nobody saw how an attempt ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.alerts.conftest import ANNA, SHORT, Opener
from tests.conftest import ErrorFactory, mostly
from tests.standin.telegram import TelegramStandIn
from tests.waiting import aeventually
from tocsin.alerts.channels import Message
from tocsin.alerts.scheduler import running
from tocsin.alerts.telegram import Telegram
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store import Store, alerts

KINDS = ["KeyError", "OSError", "ValueError"]


def numbers(telegram: TelegramStandIn) -> list[str]:
    """The numbers of the groups in the messages, in order."""
    return [sent.text.split("#")[1].split()[0] for sent in telegram.messages if "#" in sent.text]


async def arrived(telegram: TelegramStandIn, count: int) -> list[str]:
    await aeventually(lambda: len(set(numbers(telegram))) >= count, timeout_s=20)
    return numbers(telegram)


@pytest.mark.parametrize("fault", ["500", "502", "429", "hang"])
@mostly("sqlite")
async def test_every_alert_arrives_once_telegram_is_well_again(
    fault: str, open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """Server errors, floods and silence only mean later."""
    if fault == "429":
        telegram.flood(3, retry_after=1)
    elif fault == "hang":
        telegram.hang(2)
    else:
        telegram.fail(5, int(fault))
    await open_alerts(replace(SHORT, attempt_s=0.3))
    await put(*(error(kind) for kind in KINDS))

    assert sorted(await arrived(telegram, 3)) == ["1", "2", "3"]


async def test_a_wait_that_telegram_asks_for_is_kept_by_all(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """No process begins a message to that chat before it is over."""
    telegram.flood(2, retry_after=1)
    await open_alerts()
    await open_alerts()
    await put(*(error(kind) for kind in KINDS))

    await arrived(telegram, 3)
    calls = telegram.calls("sendMessage")
    taken_at = [request.at for request in calls if request.answer == 200]
    assert [request.answer for request in calls].count(429) == 2  # both processes may have begun one
    assert min(taken_at) - calls[0].at >= 0.95


async def test_a_lost_answer_repeats_the_message_once_and_says_so(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """Telegram has it, but nobody here can know."""
    telegram.drop_replies(1)
    await open_alerts()
    await put(error())

    await aeventually(lambda: len(telegram.messages) == 2)
    first, second = telegram.messages
    assert "may repeat" not in first.text and "may repeat" in second.text


@mostly("postgresql")
async def test_two_processes_on_one_database_say_each_alert_once(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """One leads, both deliver, none repeats."""
    first = await open_alerts(fold_above=1000)
    second = await open_alerts(fold_above=1000)
    for start in range(0, 60, 6):
        await put(*(error(f"Error{number}") for number in range(start, start + 6)))

    found = await arrived(telegram, 60)
    assert len(found) == 60
    assert first.is_leader != second.is_leader


async def test_a_chat_gets_only_so_many_messages_a_minute_the_critical_first(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """The rest waits and is not lost."""
    telegram.hang()
    await open_alerts(replace(SHORT, attempt_s=0.2), messages_per_minute=3)
    await put(*(error(kind) for kind in KINDS))
    await aeventually(lambda: telegram.calls("sendMessage"))
    await put(error("Fatal", severity=Severity.CRITICAL), error("Late"))
    await aeventually(lambda: waiting(store, 5))
    telegram.heal()

    found = await arrived(telegram, 3)
    assert "4" in found and len(found) == 3
    await aeventually(lambda: waiting(store, 2))


async def waiting(store: Store, count: int) -> bool:
    listed, _ = await store.read(alerts.list_alerts)
    return [one.deliveries[0].state != "sent" for one in listed].count(True) == count


@pytest.mark.parametrize(
    ("code", "description"),
    [
        (403, "Forbidden: bot was blocked by the user"),
        (403, "Forbidden: bot was kicked from the supergroup chat"),
        (400, "Bad Request: chat not found"),
    ],
)
@mostly("sqlite")
async def test_a_chat_that_refuses_is_named_by_health_and_tried_again_later(
    code: int,
    description: str,
    open_alerts: Opener,
    telegram: TelegramStandIn,
    put: Any,
    error: ErrorFactory,
    store: Store,
) -> None:
    """With Telegram's own words; once it is mended, nothing is missing."""
    telegram.refuse(code, description)
    house = await open_alerts()
    await put(error())
    said = description.split(": ", 1)[1]

    def reasons() -> str:
        return " ".join(one["parked_reason"] or "" for one in house.state()["channels"]).lower()

    await aeventually(lambda: said.lower() in reasons())
    [alert] = (await store.read(alerts.list_alerts))[0]
    assert alert.deliveries[0].state == "pending"

    telegram.heal()
    await put(error("OSError"))

    assert sorted(await arrived(telegram, 2)) == ["1", "2"]
    await aeventually(lambda: house.state()["channels"][0]["parked_reason"] is None)


class Choking:
    """A channel with a fault of its own: it cannot say one kind of message."""

    name = "choking"
    targets: tuple[str, ...] = ("17",)

    def __init__(self) -> None:
        self.said: list[str] = []
        self.choked = 0

    async def send(self, address: str, message: Message) -> str | None:
        if "KeyError" in message.plain:
            self.choked += 1
            raise ValueError("cannot say this")
        self.said.append(message.plain)
        return None

    async def edit(self, address: str, external_id: str, message: Message) -> None: ...

    async def close(self) -> None: ...


async def test_a_message_that_always_fails_stops_no_other(
    settings: Settings, store: Store, put: Any, error: ErrorFactory
) -> None:
    """The gravest is tried first, and tried again later; the rest passes meanwhile."""
    channel = Choking()
    async with running(settings, store, channels=[channel], limits=replace(SHORT, retry_first_s=600, park_s=600)):
        await put(error("KeyError", severity=Severity.CRITICAL))
        await aeventually(lambda: channel.choked)
        await put(error("OSError"))

        await aeventually(lambda: channel.said)
    assert "OSError" in channel.said[0] and channel.choked == 1


async def test_an_address_that_is_none_blocks_nobody(
    settings: Settings, store: Store, telegram: TelegramStandIn
) -> None:
    """What a library cannot take is no fault of the chat."""
    channel = Telegram(settings)
    try:
        with pytest.raises(ValueError, match="invalid literal"):
            await channel.send("no number", Message(html="", plain=""))
    finally:
        await channel.close()


async def test_a_group_that_became_a_supergroup_is_followed(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """The message goes to the new id, and so do all later ones."""
    telegram.migrate(-5, -1005)
    await open_alerts(telegram_chat_ids=(-5,))
    await put(error())
    await arrived(telegram, 1)
    await put(error("OSError"))
    await arrived(telegram, 2)

    assert {sent.chat_id for sent in telegram.messages} == {-1005}
    assert len([request for request in telegram.calls("sendMessage") if request.answer == 400]) == 1


async def test_a_chat_that_was_taken_off_the_list_hears_nothing(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store, settings: Settings
) -> None:
    """Also not what waited for it."""
    telegram.fail(1000)
    async with running(replace(settings, telegram_chat_ids=(99,)), store, limits=SHORT):
        await put(error())
        await aeventually(lambda: telegram.calls("sendMessage"))
    telegram.heal()
    await open_alerts()
    await put(error("OSError"))

    await arrived(telegram, 1)
    assert {sent.chat_id for sent in telegram.messages} == {ANNA}


async def test_markup_that_telegram_refuses_goes_out_as_plain_text(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """Rather without bold letters than not at all."""
    telegram.refuse_markup()
    await open_alerts()
    await put(error())

    await arrived(telegram, 1)
    assert "<" not in telegram.messages[0].raw


_WORKER = """
import asyncio, sys
from tocsin.alerts.limits import Limits
from tocsin.alerts.scheduler import running
from tocsin.settings import Settings
from tocsin.store import open_store

async def main():
    settings = Settings(
        database_url=sys.argv[1], telegram_token=sys.argv[2], telegram_api_url=sys.argv[3], telegram_chat_ids=(17,)
    )
    async with running(settings, open_store(sys.argv[1]), limits=Limits(claim_s=3, attempt_s=2, lease_ttl_s=2)):
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "after"])
@mostly("postgresql")
async def test_a_worker_that_is_killed_loses_nothing(
    when: str,
    database_url: str,
    open_alerts: Opener,
    telegram: TelegramStandIn,
    put: Any,
    error: ErrorFactory,
) -> None:
    """Killed before the message is out: one message. Killed after it, before that is noted: one repeat, marked."""
    telegram.hang() if when == "before" else telegram.stall()
    await put(error())
    arguments = [sys.executable, "-c", _WORKER, database_url, telegram.token, telegram.api_url]
    with subprocess.Popen(arguments, env={**os.environ, "PYTHONWARNINGS": "ignore"}) as worker:
        try:
            await aeventually(lambda: telegram.calls("sendMessage"), timeout_s=20)
        finally:
            worker.send_signal(signal.SIGKILL)
    telegram.heal()

    await open_alerts()

    expected = 1 if when == "before" else 2
    await aeventually(lambda: len(telegram.messages) == expected, timeout_s=20)
    assert "may repeat" in telegram.messages[-1].text
    assert {sent.chat_id for sent in telegram.messages} == {ANNA}
