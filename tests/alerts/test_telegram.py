"""The bot: who may tell it what, and what it does then."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import select

from tests.alerts.conftest import ANNA, TEAM, Opener
from tests.conftest import ErrorFactory, mostly
from tests.standin.telegram import TOKEN, Sent, TelegramStandIn
from tests.waiting import aeventually
from tocsin import clock
from tocsin.lifecycle import Status
from tocsin.store import Store, alerts, audit, groups, schema

BEN, MALLORY = 18, 666


async def status(store: Store, number: int = 1) -> Status:
    return (await store.read(groups.by_number, number)).status


async def refused(store: Store) -> list[tuple[str, str]]:
    """Who tried what in vain."""

    def work(connection: Any) -> list[tuple[str, str]]:
        rows = connection.execute(select(schema.audit).where(~schema.audit.c.allowed).order_by(schema.audit.c.id))
        return [(row.actor, row.detail) for row in rows]

    return await store.read(work)


async def alert(telegram: TelegramStandIn) -> Sent:
    return (await aeventually(lambda: telegram.messages))[0]


async def answer(telegram: TelegramStandIn, count: int = 1) -> str:
    """The text of the newest message, once there are so many beside the alert."""
    await aeventually(lambda: len(telegram.messages) > count)
    return telegram.messages[count].text


async def test_a_resolve_answers_and_edits_the_alert(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """The group is resolved at once, its rows follow, and the alert says who did it."""
    await open_alerts()
    await put(error())
    await alert(telegram)
    telegram.say("/resolve 1", chat_id=ANNA, user_id=ANNA, username="anna")

    assert await answer(telegram) == "#1 is resolved."
    edited = await aeventually(lambda: next((one for one in telegram.messages if one.edits), None))
    assert edited is not None
    assert "resolved by @anna (17) (telegram)" in edited.text
    assert [button["callback_data"] for row in edited.keyboard for button in row] == ["reo:1", "det:1"]
    await aeventually(lambda: rows_resolved(store))


async def rows_resolved(store: Store) -> bool:
    def work(connection: Any) -> bool:
        rows = connection.execute(select(schema.error_logs)).all()
        return all(row.resolved and row.resolved_at for row in rows)

    return await store.read(work)


async def test_the_same_error_after_a_resolve_rings_as_a_regression(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """Resolving is a promise; the next error breaks it, and says so."""
    await open_alerts()
    await put(error())
    await alert(telegram)
    telegram.say("/resolve_1", chat_id=ANNA, user_id=ANNA)
    await answer(telegram)
    await put(error(timestamp=clock.now()))

    await aeventually(lambda: any("back after it was resolved" in sent.text for sent in telegram.messages))


@pytest.mark.parametrize(
    ("data", "stands", "says"),
    [
        ("res:1", Status.RESOLVED, "#1 is resolved."),
        ("ack:1", Status.ACKNOWLEDGED, "#1 is acknowledged."),
        ("mut:1", Status.MUTED, "#1 is muted until"),
    ],
)
@mostly("sqlite")
async def test_a_button_does_what_it_says(
    data: str,
    stands: Status,
    says: str,
    open_alerts: Opener,
    telegram: TelegramStandIn,
    put: Any,
    error: ErrorFactory,
    store: Store,
) -> None:
    """The press is answered, the message is edited, and no other is sent."""
    await open_alerts()
    await put(error())
    telegram.press((await alert(telegram)).message_id, data, user_id=ANNA, username="anna")

    await aeventually(lambda: telegram.answers and telegram.messages[0].edits)
    assert telegram.answers[0]["text"].startswith(says)
    assert await status(store) == stands
    assert len(telegram.messages) == 1


async def test_the_details_button_shows_more(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """As an answer to the alert."""
    await open_alerts()
    await put(error())
    sent = await alert(telegram)
    telegram.press(sent.message_id, "det:1", user_id=ANNA)

    assert "KeyError" in await answer(telegram)
    assert telegram.messages[1].reply_to == sent.message_id
    await aeventually(lambda: telegram.answers)


async def test_an_answer_to_an_alert_needs_no_number(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """Whoever holds the phone has the alert before them."""
    await open_alerts()
    await put(error())
    sent = await alert(telegram)
    await aeventually(lambda: is_noted(store))
    telegram.say("/resolve", chat_id=ANNA, user_id=ANNA, reply_to=sent.message_id)

    assert await answer(telegram) == "#1 is resolved."
    assert await status(store) == Status.RESOLVED


async def is_noted(store: Store) -> bool:
    """Whether the store knows under which id the newest alert can be answered."""
    listed, _ = await store.read(alerts.list_alerts)
    return listed[0].deliveries[0].external_id is not None


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        ("/resolve", "Which one?"),
        ("/resolve <b>", "<b> is no number"),
        ("/explode 1", "I do not understand /explode"),
        ("/resolve 77", "There is no #77."),
        ("/mute 1 soon", "soon is no time"),
    ],
)
@mostly("sqlite")
async def test_what_is_not_understood_is_answered_helpfully(
    said: str, answered: str, open_alerts: Opener, telegram: TelegramStandIn
) -> None:
    """No silence, no traceback."""
    await open_alerts()
    telegram.say(said, chat_id=ANNA, user_id=ANNA)

    assert answered in (await alert(telegram)).text


async def test_a_stranger_gets_nothing_but_their_own_id_and_that_once(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """What they tried is in the audit, and nothing has changed."""
    await open_alerts()
    await put(error())
    await alert(telegram)
    telegram.say("/resolve 1", chat_id=MALLORY, user_id=MALLORY, username="mallory")
    telegram.say("/errors", chat_id=MALLORY, user_id=MALLORY, username="mallory")
    telegram.say("/status", chat_id=-9, user_id=MALLORY, username="mallory")

    async def tries() -> list[tuple[str, str]] | None:
        found = await refused(store)
        return found if len(found) == 3 else None

    found = await aeventually(tries)
    assert found == [("@mallory (666)", said) for said in ("/resolve 1", "/errors", "/status")]
    assert await answer(telegram) == "Your user id is 666."
    assert len(telegram.messages) == 2
    assert await status(store) == Status.OPEN


async def test_in_a_group_only_those_who_are_named_may_act(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """The others may read, and learn which line would allow them to act."""
    await open_alerts(telegram_chat_ids=(TEAM,), telegram_user_ids=(ANNA,))
    await put(error())
    sent = await alert(telegram)
    telegram.say("/resolve@tocsin_test_bot 1", chat_id=TEAM, user_id=BEN, username="ben")

    assert "TOCSIN_TELEGRAM_USER_IDS=17,18" in await answer(telegram)
    telegram.press(sent.message_id, "res:1", user_id=BEN, username="ben")
    await aeventually(lambda: telegram.answers)
    assert "TOCSIN_TELEGRAM_USER_IDS=17,18" in telegram.answers[0]["text"]
    assert await status(store) == Status.OPEN
    assert await refused(store) == [("@ben (18)", "/resolve@tocsin_test_bot 1"), ("@ben (18)", "res:1")]

    telegram.say("/errors", chat_id=TEAM, user_id=BEN)
    assert "#1" in await answer(telegram, 2)
    telegram.say("/resolve 1", chat_id=TEAM, user_id=ANNA)
    assert await answer(telegram, 3) == "#1 is resolved."


async def test_who_presses_in_vain_again_and_again_fills_no_table(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """Each press is answered, and noted up to a limit."""
    await open_alerts(telegram_chat_ids=(TEAM,), telegram_user_ids=(ANNA,))
    await put(error())
    sent = await alert(telegram)
    presses = audit.REFUSALS_AN_HOUR + 3
    for _ in range(presses):
        telegram.press(sent.message_id, "res:1", user_id=BEN, username="ben")

    await aeventually(lambda: len(telegram.answers) == presses)
    assert await refused(store) == [("@ben (18)", "res:1")] * audit.REFUSALS_AN_HOUR + [("@ben (18)", "3")]


@pytest.mark.parametrize(
    "forged",
    [
        {"user_id": 1087968824, "sender_chat": {"id": TEAM, "type": "supergroup", "title": "team"}},
        {"user_id": 136817688, "sender_chat": {"id": -10077, "type": "channel", "title": "fake"}},
        {"user_id": 777000},
        {
            "user_id": ANNA,
            "forward_origin": {
                "type": "user",
                "date": 1,
                "sender_user": {"id": MALLORY, "is_bot": False, "first_name": "m"},
            },
        },
        {"user_id": ANNA, "via_bot": {"id": 5, "is_bot": True, "first_name": "inline"}},
    ],
)
@mostly("sqlite")
async def test_who_is_nobody_may_not_act(
    forged: dict[str, Any], open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """Anonymous admins, channels, forwarded words and other bots' words are nobody's own."""
    user_ids = (ANNA, 1087968824, 136817688, 777000)
    await open_alerts(telegram_chat_ids=(TEAM,), telegram_user_ids=user_ids)
    await put(error())
    await alert(telegram)
    telegram.say("/resolve 1", chat_id=TEAM, **forged)

    assert "may not act" in await answer(telegram)
    assert await status(store) == Status.OPEN
    assert len(await refused(store)) == 1


async def test_an_update_that_comes_twice_is_executed_once(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """As after a crash before it was confirmed."""
    await open_alerts()
    await put(error())
    await alert(telegram)
    telegram.say("/resolve 1", chat_id=ANNA, user_id=ANNA, update_id=5000)
    await answer(telegram)
    telegram.say("/reopen 1", chat_id=ANNA, user_id=ANNA, update_id=5001)
    await answer(telegram, 2)
    telegram.say("/resolve 1", chat_id=ANNA, user_id=ANNA, update_id=5000)
    telegram.say("/status", chat_id=ANNA, user_id=ANNA, update_id=5002)

    assert "open: 1" in await answer(telegram, 3)
    assert await status(store) == Status.OPEN


async def test_whoever_sets_it_up_learns_what_to_do(open_alerts: Opener, telegram: TelegramStandIn) -> None:
    """While no chat is set, /start says which."""
    await open_alerts(telegram_chat_ids=())
    telegram.say("/start", chat_id=ANNA, user_id=ANNA)

    assert "TOCSIN_TELEGRAM_CHAT_IDS=17" in (await alert(telegram)).text


async def test_a_telegram_that_is_away_stops_nothing_and_is_seen(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Start succeeds, health names it, and no text holds the token."""
    with caplog.at_level(logging.DEBUG):
        house = await open_alerts(telegram_api_url="http://127.0.0.1:9/bot")
        await put(error())

        def bot() -> dict[str, Any]:
            found: dict[str, Any] = house.state()["bot"]
            return found

        await aeventually(lambda: bot()["state"] == "unreachable")
        await aeventually(lambda: house.state()["channels"] and house.state()["channels"][0]["last_error"])
        assert house.state()["oldest_pending_s"] is not None
    assert TOKEN not in caplog.text and TOKEN not in str(house.state())


async def test_a_wrong_token_is_named_and_not_shown(open_alerts: Opener, telegram: TelegramStandIn) -> None:
    """The library would put it into its error."""
    house = await open_alerts(telegram_token="42:wrong-token-of-someone")

    problem = await aeventually(lambda: house.state()["bot"]["problem"])
    assert "TOCSIN_TELEGRAM_TOKEN" in problem and "wrong-token" not in problem


async def test_only_the_leader_listens(open_alerts: Opener, telegram: TelegramStandIn) -> None:
    """Telegram lets one at a time ask for updates."""
    houses = [await open_alerts(), await open_alerts()]

    await aeventually(lambda: [house.state()["bot"]["state"] for house in houses].count("listening") == 1)
    leader = next(house for house in houses if house.state()["bot"]["state"] == "listening")
    assert leader.is_leader
