"""Redis goes away under a service that can do without it, and comes back: all of it with real processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Service, rows_of
from tests.redis import RedisServer
from tests.standin.telegram import TOKEN as BOT
from tests.standin.telegram import TelegramStandIn
from tests.test_serve import TOKEN, Server, serving
from tests.waiting import eventually

_APP = """
import os
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
import tocsin

client = redis.asyncio.Redis.from_url(os.environ["SHOP_REDIS"], socket_timeout=1, retry=Retry(NoBackoff(), 0))
cache = tocsin.dependency("redis", optional=True, probe=client.ping)


@cache(fallback=0)
async def visits():
    return await client.incr("visits")


async def last():
    async with cache as is_there:
        if is_there:
            await client.get("visits")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    counted = await visits()
    await last()
    await send({"type": "http.response.start", "status": 200 if counted else 203, "headers": []})
    await send({"type": "http.response.body", "body": b"shop"})
"""
WITH_REDIS, WITHOUT = 200, 203
_SOON_S = 30  # on a machine that does much else
_REQUESTS = 20


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


def shown(server: Server) -> tuple[int, str, str]:
    """How health says that things stand: its code, its status, and Redis."""
    answer = server.get("/api/debug/health")
    health: dict[str, Any] = answer.json()
    return answer.status_code, health["status"], health["services"]["redis"]


def rung(telegram: TelegramStandIn) -> list[str]:
    """What each message of the outage is about, in a word, in the order in which they came."""
    words = ("regressed", "is over", "new")
    firsts = [(one.edits or [one.text])[0] for one in telegram.messages if "redis is away" in one.text]
    return [next(word for word in words if word in text) for text in firsts]


def until_rung(telegram: TelegramStandIn, *reasons: str) -> None:
    eventually(lambda: len(rung(telegram)) >= len(reasons), _SOON_S)
    assert rung(telegram) == list(reasons)


def median_s(service: Service, status: int) -> float:
    """How long a request takes; each is answered with that status."""
    taken = []
    for _ in range(_REQUESTS):
        began = time.monotonic()
        assert service.get("/") == status
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def test_an_outage_of_redis_is_told_once_and_so_is_its_end(sqlite_url: str, tmp_path: Path, redis: RedisServer) -> None:
    """Stopped, then hanging: the service goes on; the second time rings as a regression."""
    (tmp_path / "app.py").write_text(_APP)
    uvicorn = ("--", "uvicorn", "app:app", "--port", "0", "--no-access-log")
    with (
        TelegramStandIn() as telegram,
        Service(tmp_path, sqlite_url, *uvicorn, SHOP_REDIS=redis.url) as service,
        serving(
            tmp_path,
            TOCSIN_TOKEN=TOKEN,
            TOCSIN_DATABASE_URL=sqlite_url,
            TOCSIN_TELEGRAM_TOKEN=BOT,
            TOCSIN_TELEGRAM_CHAT_IDS="-1001",
            TOCSIN_TELEGRAM_API_URL=telegram.api_url,
        ) as server,
    ):
        server.until_ready()
        usual_s = median_s(service, WITH_REDIS)
        eventually(lambda: shown(server) == (200, "ok", "connected"), _SOON_S)

        redis.stop()
        assert median_s(service, WITHOUT) < 3 * usual_s + 0.05
        eventually(lambda: shown(server) == (200, "degraded", "error"), _SOON_S)
        until_rung(telegram, "new")
        [row] = rows_of(sqlite_url)
        assert (row.count, row.severity, row.category) == (1, "high", "queue")

        redis.start()
        eventually(lambda: shown(server) == (200, "ok", "connected"), _SOON_S)
        until_rung(telegram, "new", "is over")
        assert service.get("/") == WITH_REDIS
        assert "redis answers again after" in telegram.messages[-1].text
        assert server.get("/api/debug/groups/1").json()["group"]["status"] == "resolved"

        redis.hang()
        assert service.get("/") == WITHOUT  # this one waits for its time-out
        assert median_s(service, WITHOUT) < 3 * usual_s + 0.05
        until_rung(telegram, "new", "is over", "regressed")

        redis.go_on()
        until_rung(telegram, "new", "is over", "regressed", "is over")
        eventually(lambda: shown(server) == (200, "ok", "connected"), _SOON_S)
        assert [row.count for row in rows_of(sqlite_url)] == [1, 1]
        assert telegram.refusals == []
