"""
What a storm of errors does to the requests of the service that it rages in, with tocsin and without.

    python -m benchmarks.storm [--rate 10000] [--seconds 10] [--rounds 5] [--reporters nobody,tocsin,sentry]

One process under uvicorn raises and catches so many errors a second, evenly spaced, in its event loop, and
hands each to whoever reports errors: nobody, tocsin, or sentry-sdk with a transport that sends nothing. At the
same time eight clients ask for a page that takes 20 ms. The reporters take turns; each figure is the median
of the rounds. Memory is that of the process at the end of its round.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.storming import StormingService

AIM: Final = 1.25
"""The most that p99 may be of what it is in the same storm without tocsin."""

AIM_BYTES: Final = 64 * 2**20

_CALM: Final = "nobody, and no storm"


def main() -> int:
    """Print the table; 1 where the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reporters", default="nobody,tocsin,sentry")
    given = parser.parse_args()
    reporters = given.reporters.split(",")
    if "sentry" in reporters and importlib.util.find_spec("sentry_sdk") is None:
        print("sentry-sdk is not installed; left out (pip install sentry-sdk)", file=sys.stderr)
        reporters.remove("sentry")

    print(f"{given.rate:,} errors/s for {given.seconds} s, median of {given.rounds} rounds in turn", end="")
    print(f", Python {sys.version.split()[0]}, {os.cpu_count()} processors")
    found: dict[str, list[_Round]] = {}
    for _ in range(given.rounds):
        for reporter in (_CALM, *reporters):
            found.setdefault(reporter, []).append(_round(reporter, given.rate, given.seconds))
    print(f"{'reporter':24} {'p50 ms':>8} {'p99 ms':>8} {'requests':>9} {'errors/s':>9} {'memory MiB':>11}")
    for reporter, rounds in found.items():
        p50, p99, requests, rate, memory = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"{reporter:24} {p50:8.1f} {p99:8.1f} {requests:9.0f} {rate:9.0f} {memory / 2**20:11.0f}")
    return _judge(found)


_Round = tuple[float, float, int, float, int]
"""p50 and p99 in milliseconds, requests, errors a second, bytes of memory."""


def _round(reporter: str, rate: int, seconds: int) -> _Round:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        is_calm = reporter == _CALM
        service = StormingService(folder, "nobody" if is_calm else reporter, f"sqlite:///{folder}/tocsin.db")
        with service:
            service.requests(1)
            if not is_calm:
                service.storm(rate, rate * seconds)
            times = service.requests(seconds - 1)
            told = service.told()
            achieved = told.get("raised", 0) / told.get("took_s", 1)
            return times.p50, times.p99, times.count, achieved, told["rss"]


def _judge(found: dict[str, list[_Round]]) -> int:
    if not {"nobody", "tocsin"} <= found.keys():
        return 0
    pairs = list(zip(found["nobody"], found["tocsin"], strict=True))
    ratio = statistics.median(with_it[1] / without[1] for without, with_it in pairs)
    more = statistics.median(with_it[4] - without[4] for without, with_it in pairs)
    print(f"p99 with tocsin: {ratio:.2f} × (aim: at most {AIM} ×); memory: {more / 2**20:+.0f} MiB (aim: at most +64)")
    return int(ratio > AIM or more > AIM_BYTES)


if __name__ == "__main__":
    sys.exit(main())
