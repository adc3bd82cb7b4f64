"""
The database is away for 20 s under 20 errors a second: what is lost, what is doubled, what the service feels.

    python -m benchmarks.outage [--seconds 20]

A shop under `tocsin run` fails 20 times a second, each request in one of two ways, before, during and
after an outage of PostgreSQL (killed, then started again). The latency of its answers in each part
stands side by side.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.postgres import PostgresServer
from tests.processes import Service, errors_in
from tests.waiting import eventually
from tocsin import demo
from tocsin.store import open_store
from tocsin.store.migrate import migrate_now

PER_SECOND = 20
WAYS = ("/cart", "/orders/7/refund")


def main() -> None:
    """Print a line for each part, and the count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    seconds = parser.parse_args().seconds
    postgres = PostgresServer()
    store = open_store(postgres.url)
    migrate_now(store)
    store.close_now()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(Path(demo.__file__).with_name("shop.py"), folder)
        try:
            with Service(folder, postgres.url, "--", "uvicorn", "shop:app", "--port", "0") as service:
                _play(service, postgres, seconds)
        finally:
            postgres.close()


def _play(service: Service, postgres: PostgresServer, seconds: float) -> None:
    ways = itertools.cycle(WAYS)
    print(f"{PER_SECOND} errors a second, PostgreSQL away for {seconds:g} s; ms")
    print(f"{'':10} {'errors':>7} {'p50':>7} {'p99':>7} {'max':>7}")
    failed = 0
    with httpx.Client(base_url=service.address, timeout=20, trust_env=False) as customer:
        _ask(customer, ways, 2)  # the first error brings the libraries in
        failed += 2 * PER_SECOND
        for part in ("before", "away", "after"):
            if part == "away":
                postgres.stop(at_once=True)
            if part == "after":
                postgres.start()
            costs = _ask(customer, ways, seconds)
            failed += len(costs)
            ordered = sorted(costs)
            p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
            figures = " ".join(f"{cost * 1000:7.1f}" for cost in (statistics.median(ordered), p99, ordered[-1]))
            print(f"{part:10} {len(costs):7} {figures}", flush=True)
    eventually(lambda: errors_in(postgres.url) >= failed, 30)
    stored = errors_in(postgres.url)
    print(f"requests that failed {failed}, errors stored {stored}")
    if stored != failed:
        sys.exit("lost or doubled")


def _ask(customer: httpx.Client, ways: Iterator[str], seconds: float) -> list[float]:
    costs = []
    began = time.monotonic()
    for number in range(round(seconds * PER_SECOND)):
        time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
        way = next(ways)
        before = time.perf_counter()
        customer.request("POST" if way.startswith("/orders") else "GET", way)
        costs.append(time.perf_counter() - before)
    return costs


if __name__ == "__main__":
    main()
