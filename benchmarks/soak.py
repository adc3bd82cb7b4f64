"""
Half an hour beside the demo's shop: what rang, whether it was right, and what the memory did.

    python -m benchmarks.soak [--minutes 30]

A shop under `tocsin run`, a server with a bot, PostgreSQL. The shop is asked for twenty good things a
second and one that fails every two seconds, in seven ways. It is restarted five times, PostgreSQL once
(killed in the middle of the work), and one group is resolved half-way, which must ring once more as a
regression. At the end every request that failed must be a stored error, and every message is listed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.postgres import PostgresServer
from tests.processes import Service, errors_in
from tests.standin.telegram import TOKEN, TelegramStandIn
from tests.test_serve import Server, serving
from tests.waiting import eventually
from tocsin import demo

CHAT = 4242
RESTARTS = 5

FAILING: list[tuple[str, str, object]] = [
    ("POST", "/orders", {"customer": {}}),
    ("POST", "/orders/7/refund", None),
    ("POST", "/orders/7/pay", None),
    ("POST", "/leads", None),
    ("POST", "/stock/sync", None),
    ("POST", "/prices", None),
    ("GET", "/cart", None),
]


class Run:
    """One soak: what is asked of the shop, and what is noted meanwhile."""

    def __init__(self, folder: Path, postgres: PostgresServer, telegram: TelegramStandIn, server: Server) -> None:
        self.folder = folder
        self.postgres = postgres
        self.telegram = telegram
        self.server = server
        self.failed = 0
        self.memory_mb: dict[str, list[float]] = {"server": [], "shop": []}

    @contextmanager
    def shop(self) -> Iterator[Service]:
        command = ("--", "uvicorn", "shop:app", "--port", "0")
        settings = {"TOCSIN_SERVICE": "shop", "TOCSIN_RELEASE": "2.4.0"}
        with Service(self.folder, self.postgres.url, *command, **settings) as service:
            yield service

    def for_(self, seconds: float, service: Service, ways: Iterator[tuple[str, str, object]]) -> None:
        """Be a customer for so long."""
        until = time.monotonic() + seconds
        with httpx.Client(base_url=service.address, timeout=10, trust_env=False) as customer:
            while time.monotonic() < until:
                began = time.monotonic()
                for _ in range(40):
                    assert customer.get("/").status_code == 200
                method, path, body = next(ways)
                customer.request(method, path, json=body)
                self.failed += 1
                self.memory_mb["server"].append(_resident_mb(self.server.process.pid))
                self.memory_mb["shop"].append(_resident_mb(service.process.pid))
                time.sleep(max(0.0, 2 - (time.monotonic() - began)))


def main() -> None:
    """Play it and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    postgres = PostgresServer()
    with tempfile.TemporaryDirectory() as name, TelegramStandIn() as telegram:
        folder = Path(name)
        shutil.copy(Path(demo.__file__).with_name("shop.py"), folder)
        settings = {
            "TOCSIN_DATABASE_URL": postgres.url,
            "TOCSIN_TELEGRAM_TOKEN": TOKEN,
            "TOCSIN_TELEGRAM_CHAT_IDS": str(CHAT),
            "TOCSIN_TELEGRAM_API_URL": telegram.api_url,
            "TOCSIN_TOKEN": "soak",
        }
        try:
            with serving(folder, **settings) as server:
                server.until_ready()
                run = Run(folder, postgres, telegram, server)
                _play(run, minutes * 60 / (RESTARTS + 1))
                _report(run, minutes)
        finally:
            postgres.close()


def _play(run: Run, part_s: float) -> None:
    ways = itertools.cycle(FAILING)
    for part in range(RESTARTS + 1):
        with run.shop() as service:
            print(f"{time.strftime('%H:%M:%S')} the shop has started for the {part + 1}. time", flush=True)
            if part == RESTARTS // 2:
                run.for_(part_s / 2, service, ways)
                run.postgres.stop(at_once=True)
                print(f"{time.strftime('%H:%M:%S')} PostgreSQL is killed", flush=True)
                run.for_(10, service, ways)
                run.postgres.start()
                print(f"{time.strftime('%H:%M:%S')} PostgreSQL has started", flush=True)
                run.for_(max(part_s / 2 - 10, 1), service, ways)
                run.telegram.say("/resolve 1", chat_id=CHAT, user_id=CHAT)
                print(f"{time.strftime('%H:%M:%S')} /resolve 1", flush=True)
            else:
                run.for_(part_s, service, ways)


def _report(run: Run, minutes: float) -> None:
    eventually(lambda: errors_in(run.postgres.url) >= run.failed, 30)
    stored = errors_in(run.postgres.url)
    print(f"\n{minutes:g} minutes, {RESTARTS} restarts of the shop, one of PostgreSQL (kill)")
    print(f"requests that failed {run.failed}, errors stored {stored}")
    print(f"messages {len(run.telegram.messages)}, edits {len(run.telegram.calls('editMessageText'))}:")
    for text, times in Counter(_first_lines(sent.text) for sent in run.telegram.messages).items():
        print(f"  {times} × {text}")
    for name, readings in run.memory_mb.items():
        tenth = max(len(readings) // 10, 1)
        early, late = statistics.median(readings[tenth : 2 * tenth]), statistics.median(readings[-tenth:])
        print(f"memory of the {name}: {early:.0f} MB early, {late:.0f} MB late, {max(readings):.0f} MB at most")
    if stored != run.failed:
        sys.exit("not every request that failed is a stored error")


def _first_lines(text: str) -> str:
    return " | ".join(text.splitlines()[:2])


def _resident_mb(pid: int) -> float:
    """Of a process and its children."""
    total = 0.0
    for process in (pid, *_children(pid)):
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return total


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    main()
