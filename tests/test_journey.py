"""The whole way, with real processes: from a `raise` to a message in Telegram, and `/resolve` back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from tests.conftest import mostly
from tests.processes import rows_of
from tests.raising import RaisingService
from tests.standin.telegram import TOKEN, Sent, TelegramStandIn
from tests.test_serve import Server, serving
from tests.waiting import eventually
from tocsin.store import open_store
from tocsin.store.schema import audit

CHAT = -1001
ANNA = 17
STRANGER = 99

_ARRIVES_S = 30  # on a machine that does much else; how fast it is, benchmarks/journey.py tells


@pytest.fixture
def telegram() -> Iterator[TelegramStandIn]:
    with TelegramStandIn() as stand_in:
        yield stand_in


@contextmanager
def running(
    folder: Path, url: str, telegram: TelegramStandIn, **settings: str
) -> Iterator[tuple[RaisingService, Server]]:
    """A server with a bot in a group chat, and a service."""
    known = {
        "TOCSIN_DATABASE_URL": url,
        "TOCSIN_TELEGRAM_TOKEN": TOKEN,
        "TOCSIN_TELEGRAM_CHAT_IDS": str(CHAT),
        "TOCSIN_TELEGRAM_USER_IDS": str(ANNA),
        "TOCSIN_TELEGRAM_API_URL": telegram.api_url,
    }
    with serving(folder, **known, **settings) as server:
        server.until_ready()
        with RaisingService(folder / "service", url) as service:
            yield service, server


def message_with(telegram: TelegramStandIn, text: str, *, after: int = 0) -> Sent:
    """The message that has a text by now, among those after a message id."""

    def find(stand_in: TelegramStandIn) -> Sent | None:
        return next((sent for sent in stand_in.messages if sent.message_id > after and text in sent.text), None)

    found = telegram.wait_for(find, _ARRIVES_S)
    assert found is not None
    return found


def read(url: str, work: Callable[[Connection], Any]) -> Any:
    store = open_store(url)
    try:
        return store.read_now(work)
    finally:
        store.close_now()


def test_raise_rings_resolve_answers_and_a_return_rings_as_a_regression(
    empty_database_url: str, tmp_path: Path, telegram: TelegramStandIn
) -> None:
    url = empty_database_url
    with running(tmp_path, url, telegram) as (service, _):
        service.raise_("PaymentLost", "order 17")
        alert = message_with(telegram, "PaymentLost")
        for part in ("#1", "order 17", "shop", "production"):
            assert part in alert.text
        assert alert.is_silent  # high; only critical makes a sound

        telegram.say("/resolve 1", chat_id=CHAT, user_id=ANNA, chat_type="supergroup", username="anna")
        message_with(telegram, "#1", after=alert.message_id)
        telegram.wait_for(lambda stand_in: "anna" in stand_in.messages[0].text, _ARRIVES_S)
        eventually(lambda: all(row.resolved and row.resolved_at for row in rows_of(url)), _ARRIVES_S)

        last = telegram.messages[-1].message_id
        service.raise_("PaymentLost", "order 18")
        again = message_with(telegram, "PaymentLost", after=last)
        assert "regress" in again.text.lower()
        assert [bool(row.resolved) for row in rows_of(url)] == [True, False]
    assert telegram.refusals == []


@mostly("postgresql", "empty_database_url")
def test_the_button_resolves_as_the_command_does(
    empty_database_url: str, tmp_path: Path, telegram: TelegramStandIn
) -> None:
    with running(tmp_path, empty_database_url, telegram) as (service, _):
        service.raise_("StockLost")
        alert = message_with(telegram, "StockLost")
        button = next(one for row in alert.keyboard for one in row if "esolve" in one["text"])

        telegram.press(alert.message_id, button["callback_data"], user_id=ANNA, username="anna")

        telegram.wait_for(lambda stand_in: stand_in.answers, _ARRIVES_S)
        telegram.wait_for(lambda stand_in: "anna" in stand_in.messages[0].text, _ARRIVES_S)
        eventually(lambda: all(row.resolved for row in rows_of(empty_database_url)), _ARRIVES_S)


def test_a_stranger_changes_nothing_and_is_in_the_audit(
    sqlite_url: str, tmp_path: Path, telegram: TelegramStandIn
) -> None:
    with running(tmp_path, sqlite_url, telegram) as (service, _):
        service.raise_("StockLost")
        message_with(telegram, "StockLost")

        telegram.say("/resolve 1", chat_id=STRANGER, user_id=STRANGER)
        telegram.say("/resolve 1", chat_id=CHAT, user_id=STRANGER, chat_type="supergroup")

        def refused(connection: Connection) -> int:
            return len(connection.execute(select(audit).where(audit.c.allowed.is_(False))).all())

        eventually(lambda: read(sqlite_url, refused) == 2, _ARRIVES_S)
        (row,) = rows_of(sqlite_url)
        assert not row.resolved
        to_stranger = [sent.text for sent in telegram.messages if sent.chat_id == STRANGER]
        assert all("StockLost" not in text for text in to_stranger)


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda telegram: telegram.flood(3, 1), id="429"),
        pytest.param(lambda telegram: telegram.fail(3), id="500"),
        pytest.param(lambda telegram: telegram.drop_replies(1), id="reply lost"),
    ],
)
def test_every_alert_arrives_though_telegram_is_in_trouble(
    sqlite_url: str, tmp_path: Path, telegram: TelegramStandIn, trouble: Callable[[TelegramStandIn], None]
) -> None:
    with running(tmp_path, sqlite_url, telegram) as (service, _):
        trouble(telegram)
        for number in range(4):
            service.raise_(f"Kind{number}")

        for number in range(4):
            message_with(telegram, f"Kind{number}")


@mostly("postgresql", "empty_database_url")
def test_alerts_wait_while_telegram_does_not_answer_and_over_a_restart_of_the_server(
    empty_database_url: str, tmp_path: Path, telegram: TelegramStandIn
) -> None:
    """Nothing comes back from Telegram, the server is killed, another starts; the alert arrives."""
    telegram.hang()
    with running(tmp_path, empty_database_url, telegram) as (service, server):
        service.raise_("OnlyOnce")
        eventually(lambda: rows_of(empty_database_url), _ARRIVES_S)
        telegram.wait_for(lambda stand_in: stand_in.calls("getMe") or stand_in.calls("sendMessage"), _ARRIVES_S)
        server.process.kill()
    telegram.heal()

    with running(tmp_path, empty_database_url, telegram):
        message_with(telegram, "OnlyOnce")


def test_the_service_does_not_notice_that_its_database_is_away(tmp_path: Path, telegram: TelegramStandIn) -> None:
    """It raises at the same pace, and all of it is stored by whoever starts next."""
    nowhere = "postgresql://nobody@127.0.0.1:1/away"
    with RaisingService(tmp_path / "service", nowhere) as service:
        costs = []
        for number in range(50):
            raised, went_on = service.raise_("WhileAway", str(number))
            costs.append(went_on - raised)
    assert sorted(costs)[len(costs) // 2] < 0.05

    url = f"sqlite:///{tmp_path}/back.db"
    settings = {"TOCSIN_DATABASE_URL": url, "TOCSIN_SPOOL_DIR": str(tmp_path / "service" / "spool")}
    with serving(tmp_path, **settings) as server:
        server.until_ready()
        eventually(lambda: sum(row.count for row in rows_of(url)) == 50, _ARRIVES_S)
