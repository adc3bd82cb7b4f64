"""
From `raise` in a service to the HTTP request at Telegram, with service and server as two processes.

    python -m benchmarks.journey [--errors 100] [sqlite|postgresql|pgbouncer …]

Different errors, one after another, each after the message of the one before. What limits messages
(folding, so many a minute) is set high, since it is the way that is measured; each step's share is
worked out from the times that the steps leave behind.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, select

from tests.pgbouncer import pgbouncer
from tests.postgres import PostgresServer
from tests.raising import RaisingService
from tests.standin.telegram import TOKEN, TelegramStandIn
from tests.test_serve import serving
from tocsin.store import open_store
from tocsin.store.schema import alerts, error_logs

CHAT = 4242


def main() -> None:
    """Print a line for each database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--errors", type=int, default=100)
    parser.add_argument("databases", nargs="*", default=["sqlite", "postgresql"])
    arguments = parser.parse_args()
    print(f"raise → message, {arguments.errors} different errors one after another; ms")
    print(f"{'':12} {'p50':>6} {'p99':>6} {'max':>6}   capture → stored → decided → request (medians)")
    for name in arguments.databases:
        with _database(name) as url:
            _report(name, *measure(url, arguments.errors))


def measure(url: str, errors: int) -> tuple[list[float], list[tuple[float, ...]]]:
    """The whole time of each error, and its steps, in seconds."""
    totals: list[float] = []
    steps: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as folder, TelegramStandIn() as telegram:
        settings = {
            "TOCSIN_DATABASE_URL": url,
            "TOCSIN_TELEGRAM_TOKEN": TOKEN,
            "TOCSIN_TELEGRAM_CHAT_IDS": str(CHAT),
            "TOCSIN_TELEGRAM_API_URL": telegram.api_url,
            "TOCSIN_FOLD_ABOVE": "1000",
            "TOCSIN_MESSAGES_PER_MINUTE": "1000",
        }
        with serving(Path(folder), **settings) as server:
            server.until_ready()
            with RaisingService(Path(folder) / "service", url) as service:
                offset = time.time() - time.monotonic()
                for number in range(errors):
                    kind = f"Error{number:04}"
                    raised, went_on = service.raise_(kind)
                    arrived = _arrival(telegram, kind)
                    totals.append(arrived - raised)
                    stored, decided = (moment - offset for moment in _moments(url, kind))
                    steps.append((went_on - raised, stored - went_on, decided - stored, arrived - decided))
    return totals, steps


def _arrival(telegram: TelegramStandIn, kind: str) -> float:
    def at(stand_in: TelegramStandIn) -> float:
        return next((sent.at for sent in stand_in.messages if kind in sent.text), 0.0)

    return telegram.wait_for(at, 20)


def _moments(url: str, kind: str) -> tuple[float, float]:
    """When the error was stored and when its alert was decided, seconds since the epoch."""

    def work(connection: Connection) -> tuple[float, float]:
        query = (
            select(error_logs.c.created_at, alerts.c.created_at)
            .join(alerts, alerts.c.group_id == error_logs.c.group_id)
            .where(error_logs.c.exception_type == f"__main__.{kind}")
        )
        stored, decided = connection.execute(query).one()
        return stored.timestamp(), decided.timestamp()

    store = open_store(url)
    try:
        return store.read_now(work)
    finally:
        store.close_now()


def _report(name: str, totals: list[float], steps: list[tuple[float, ...]]) -> None:
    ordered = sorted(totals)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]  # nearest rank
    shares = " → ".join(f"{statistics.median(step) * 1000:.1f}" for step in zip(*steps, strict=True))
    figures = f"{statistics.median(totals) * 1000:6.0f} {p99 * 1000:6.0f} {ordered[-1] * 1000:6.0f}"
    print(f"{name:12} {figures}   {shares}", flush=True)


@contextmanager
def _database(name: str) -> Iterator[str]:
    if name == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/tocsin.db"
        return
    server = PostgresServer()
    try:
        if name == "pgbouncer":
            with pgbouncer(server, pool_size=5) as url:
                yield url
        else:
            yield server.url
    finally:
        server.close()


if __name__ == "__main__":
    main()
