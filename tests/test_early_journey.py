"""The first team's table under a running server: the old writer goes on, and its errors ring."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncpg

from tests.standin.telegram import TelegramStandIn
from tests.store.test_migrate import make_early_table
from tests.test_journey import message_with, running
from tests.waiting import eventually
from tocsin.store import adopt, open_store
from tocsin.store.adopt import Rows

_WITHIN_S = 2.0
_SESSIONS = 6  # a server's: four for what it is asked and does, one for its drain, one that listens

_INSERT = (
    "INSERT INTO error_logs (severity, category, message, stack, context, environment) VALUES ('high', 'stripe',"
    " 'Your card was declined', E'StripeError: Your card was declined\\n    at charge (/app/src/pay.ts:7:3)',"
    " '{\"order\": \"17\"}', 'production')"
)


def test_what_the_old_writer_inserts_rings_once_and_what_stood_there_never(
    empty_postgres_url: str, tmp_path: Path
) -> None:
    """Three rows of one error: one group, one message, within two seconds."""
    url = empty_postgres_url
    store = open_store(url)
    store.write_now(make_early_table)
    with TelegramStandIn() as telegram, running(tmp_path, url, telegram):
        eventually(lambda: not store.read_now(adopt.waiting, Rows.BEFORE), 30)
        assert telegram.messages == []

        begun = asyncio.run(_insert(url, 3))

        alert = message_with(telegram, "Your card was declined")
        took_s = alert.at - begun
        for part in ("#4", "StripeError", "error_logs", "production", "charge"):
            assert part in alert.text
        eventually(lambda: not store.read_now(adopt.waiting, Rows.UNTAKEN))
        assert [sent for sent in telegram.messages if sent.message_id != alert.message_id] == []
        assert asyncio.run(_sessions(url)) <= _SESSIONS + 1  # and this test's own
    assert took_s < _WITHIN_S
    store.close_now()


async def _insert(url: str, times: int) -> float:
    connection = await asyncpg.connect(url)
    begun = time.monotonic()
    for _ in range(times):
        await connection.execute(_INSERT)
    await connection.close()
    return begun


async def _sessions(url: str) -> int:
    connection = await asyncpg.connect(url)
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tocsin' AND datname = current_database()"
    found: int = await connection.fetchval(query)
    await connection.close()
    return found
