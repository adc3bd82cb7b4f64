"""A Node service with OpenTelemetry's standard auto-instrumentation, from npm, as a real process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.npm import installed
from tests.waiting import eventually

HERE = Path(__file__).parent
SHOP = HERE / "shop.cjs"
TOCSIN_FILE = HERE.parents[1] / "docs" / "tocsin.cjs"
AUTO = "@opentelemetry/auto-instrumentations-node/register"

PACKAGES = {
    "@opentelemetry/api": "1.9.1",
    "@opentelemetry/api-logs": "0.223.0",
    "@opentelemetry/auto-instrumentations-node": "0.81.2",
    "@opentelemetry/otlp-exporter-base": "0.223.0",
    "express": "5.3.0",
}

_STARTS_S = 40


class NodeShop:
    """The shop, listening on a port of its own."""

    def __init__(self, folder: Path, command: list[str], environ: dict[str, str]) -> None:
        self.log = folder / "shop.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environ, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def get(self, path: str) -> int:
        """Ask for a path; its status."""
        found = eventually(lambda: re.search(r"listening on (\d+)", self.said), _STARTS_S)
        assert found
        return httpx.get(f"http://127.0.0.1:{found[1]}{path}", timeout=20, trust_env=False).status_code

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(20)


@contextmanager
def node_shop(
    folder: Path,
    endpoint: str,
    *,
    protocol: str = "http/protobuf",
    requires: str = AUTO,
    before: tuple[str, ...] = (),
    **environ: str,
) -> Iterator[NodeShop]:
    """
    The shop at work.

    Args:
        endpoint: where its exporters send.
        requires: what Node loads first.
        before: words before ``node``: a program that runs it.
    """
    modules = installed(PACKAGES)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_", "NODE_"))}
    settings = {
        "NODE_PATH": str(modules),
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_NODE_RESOURCE_DETECTORS": "env,os,process",  # the others ask clouds that are not there
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BLRP_SCHEDULE_DELAY": "100",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    shop = NodeShop(folder, [*before, "node", "--require", requires, str(SHOP)], kept | settings | environ)
    try:
        yield shop
    finally:
        if shop.process.poll() is None:
            shop.process.kill()
        shop.process.wait()
