"""A Python service with OpenTelemetry's stock SDK and instrumentation, and nothing of tocsin's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.interop.node import TOCSIN_FILE, NodeShop, node_shop
from tests.interop.test_node import ARRIVES_S, groups_of, row_with
from tests.processes import errors_in, rows_of
from tests.standin.repeater import repeating
from tests.test_serve import serving
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
OUTAGE_S = 28  # and what a server takes to start


class Shop:
    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def said(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> int:
        found = eventually(lambda: re.search(r"running on (\S+)", self.said), 40)
        assert found
        return httpx.get(found[1] + path, timeout=20, trust_env=False).status_code


@contextmanager
def fastapi_shop(folder: Path, endpoint: str, **environ: str) -> Iterator[Shop]:
    """The shop under ``opentelemetry-instrument``, sending to an endpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))}
    settings = {
        "PYTHONPATH": str(ROOT),
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BLRP_SCHEDULE_DELAY": "100",
        "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "tocsin",
    }
    command = [
        *(str(BIN / "opentelemetry-instrument"), str(BIN / "uvicorn"), "tests.interop.fastapi_shop:app"),
        *("--port", "0", "--no-access-log"),
    ]
    log = folder / "shop.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=kept | settings | environ, cwd=folder, stdout=out, stderr=out)
    try:
        yield Shop(log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_each_error_of_a_fastapi_service_counts_once(postgres_url: str, tmp_path: Path) -> None:
    """Nested spans with a growing traceback, log records of the same exception, each batch five times."""
    with (
        serving(tmp_path, TOCSIN_DATABASE_URL=postgres_url) as server,
        repeating(server.address, times=5) as endpoint,
        fastapi_shop(tmp_path / "shop", endpoint) as shop,
    ):
        for order in range(3):
            for route in ("sync", "async", "handled", "both", "logged", "ok"):
                shop.get(f"/{route}/{order}" if route != "ok" else "/ok")
        shop.get("/nowhere")
        expected = {
            "PaymentRefused: order N cannot be paid": 3,
            "TypeError: order N has no items": 3,
            "KeyError: 'price of N'": 3,
            "ValueError: order N is here and there": 3,
            "order N was left behind": 3,
        }
        with suppress(AssertionError):  # what is missing then, the comparison says
            eventually(lambda: errors_in(postgres_url) >= sum(expected.values()), ARRIVES_S)

        groups = groups_of(postgres_url)
        assert {title: group.count for title, group in groups.items()} == expected
        assert groups["PaymentRefused: order N cannot be paid"].culprit.endswith("fastapi_shop in charge")

        unhandled = row_with(postgres_url, "order 1 has no items")
        eventually(lambda: "url.path" in row_with(postgres_url, "order 1 has no items").context, ARRIVES_S)
        assert (unhandled.severity, unhandled.service) == ("high", "shop")


@pytest.mark.gate
@pytest.mark.parametrize("kind", ["python", "node"])
def test_exporters_that_retry_lose_nothing_while_the_server_is_away(
    kind: str, database_url: str, tmp_path: Path
) -> None:
    """
    For 30 s, with an error every second before, in and after it, and each is stored once.

    Python's exporter gives a batch up after six tries, 25 to 37 s by chance, and says so. The first error of the outage
    may be lost by that if it was in a batch of spans and one of logs that both were; the next batches begin later.
    """
    with serving(tmp_path, TOCSIN_DATABASE_URL=database_url) as server, ExitStack() as stack:
        address = server.address
        shop: Shop | NodeShop
        if kind == "python":
            shop = stack.enter_context(fastapi_shop(tmp_path / "shop", address, OTEL_EXPORTER_OTLP_TIMEOUT="120"))
        else:
            shop = stack.enter_context(node_shop(tmp_path / "shop", address, requires=str(TOCSIN_FILE)))
        for order in range(3):
            shop.get(f"/both/{order}")
        eventually(lambda: len(rows_of(database_url)) == 3, ARRIVES_S)
        server.process.kill()
        server.wait()
        returns_at = time.monotonic() + OUTAGE_S
        order = 3
        while time.monotonic() < returns_at:
            shop.get(f"/both/{order}")
            order += 1
            time.sleep(1)  # the outage itself
        with serving(tmp_path, TOCSIN_DATABASE_URL=database_url, port=int(address.rpartition(":")[2])) as again:
            again.until_ready()
            last = order + 3
            for order in range(order, last):
                shop.get(f"/both/{order}")

            def is_all_there() -> bool:
                lost = 1 if kind == "python" and given_up(shop) >= {"spans", "logs"} else 0
                return errors_in(database_url) >= last - lost

            with suppress(AssertionError):  # what is missing then, the comparison says
                eventually(is_all_there, 90)
            stored = [int(row.message.split()[1]) for row in rows_of(database_url)]

        missing = set(range(last)) - set(stored)
        assert len(stored) == len(set(stored))
        assert missing <= ({3} if kind == "python" and given_up(shop) >= {"spans", "logs"} else set())


def given_up(shop: Shop | NodeShop) -> set[str]:
    """What the exporters of the shop say that they lost a batch of."""
    return set(re.findall(r"Failed to export (\w+) batch", shop.said))
