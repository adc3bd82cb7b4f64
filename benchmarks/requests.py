"""
What a request costs with tocsin around the application, beside the bare one and others, in one run.

    python -m benchmarks.requests

The application is a Starlette one, called without a server; the variants take turns, and each figure is
the median of the rounds. Failing requests come slowly enough to be written out in full. Below them is what
a log line costs that is no error, but a breadcrumb: in a request, through a handler with a usual format.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

ROUNDS = 7
GOOD = 3000
FAILING = 150
LINES = 300

App = Callable[..., Awaitable[None]]


def _application() -> Any:
    async def good(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def failing(request: Request) -> PlainTextResponse:
        raise ValueError("it broke")

    return Starlette(routes=[Route("/good/{number}", good), Route("/failing/{number}", failing)])


def _scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"page=1",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"shop.example"), (b"user-agent", b"bench"), (b"accept", b"*/*")],
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 80),
    }


async def _call_us(app: App, path: str, times: int) -> float:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None: ...

    costs = []
    for _ in range(times):
        scope = _scope(path)
        before = time.perf_counter_ns()
        try:
            await app(scope, receive, send)
        except ValueError:
            pass
        costs.append(time.perf_counter_ns() - before)
    return statistics.median(costs) / 1000


async def _measure(apps: dict[str, App]) -> dict[str, tuple[float, float]]:
    good: dict[str, list[float]] = {name: [] for name in apps}
    failing: dict[str, list[float]] = {name: [] for name in apps}
    for _ in range(ROUNDS):
        for name, app in apps.items():
            good[name].append(await _call_us(app, "/good/1", GOOD))
            failing[name].append(await _call_us(app, "/failing/1", FAILING))
            gc.collect()
    return {name: (statistics.median(good[name]), statistics.median(failing[name])) for name in apps}


def _line_us(logger: logging.Logger) -> float:
    before = time.perf_counter_ns()
    for number in range(LINES):
        logger.info("order %d of customer %s is paid by card", number, "anna")
    return (time.perf_counter_ns() - before) / LINES / 1000


def _measure_lines() -> tuple[float, float]:
    """A log line as tocsin finds it, and with its hook; in turn."""
    from tocsin.instrumentation import context, logs

    logger = logging.getLogger("shop.orders")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.FileHandler(os.devnull)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger.addHandler(handler)
    bare, hooked = [], []
    for _ in range(20 * ROUNDS):
        token = context.current_scope.set(_scope("/good/1"))
        hooked.append(_line_us(logger))
        context.current_scope.reset(token)
        logs.uninstall()
        bare.append(_line_us(logger))
        logs.install()
    return statistics.median(bare), statistics.median(hooked)


def main() -> None:
    """Print the tables."""
    bare = _application()
    asyncio.run(_call_us(bare, "/good/1", 1))  # builds its middleware before anything is patched
    apps: dict[str, App] = {"bare": bare}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        import tocsin
        from tocsin.instrumentation import capture

        # The database is away, so that nothing runs beside what is measured; every error is written out.
        tocsin.init(service="bench", database_url="postgresql://nobody@127.0.0.1:1/away", spool_dir=f"{folder}/spool")
        capture.FULL_PER_SECOND = capture.FULL_IN_ALL_PER_SECOND = 10**9  # type: ignore[misc]
        apps["tocsin"] = _application()
        asyncio.run(_call_us(apps["tocsin"], "/good/1", 1))
        apps |= _others()
        figures = asyncio.run(_measure(apps))
        bare_line, hooked_line = _measure_lines()
        tocsin.shutdown()
    print(f"Starlette, in process, median of {ROUNDS} rounds in turn, Python {sys.version.split()[0]}; µs")
    print(f"{'':28} {'good':>8} {'more':>8} {'failing':>9} {'more':>9}")
    for name, (good, failing) in figures.items():
        more = good - figures["bare"][0], failing - figures["bare"][1]
        print(f"{name:28} {good:8.1f} {more[0]:+8.1f} {failing:9.1f} {more[1]:+9.1f}")
    print(f"\n{'a log line':28} {bare_line:8.1f}")
    print(f"{'a log line, with tocsin':28} {hooked_line:8.1f} {hooked_line - bare_line:+8.1f}")


def _others() -> dict[str, App]:
    found: dict[str, App] = {}
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import tocsin.instrumentation.state as state

    witness, state.current = state.current, None  # their applications are built bare
    try:
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
        inner = _application()
        asyncio.run(_call_us(inner, "/good/1", 1))
        found["OpenTelemetry ASGI"] = OpenTelemetryMiddleware(inner, tracer_provider=provider)
        try:
            import sentry_sdk
            from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
            from sentry_sdk.transport import Transport
        except ImportError:
            print("sentry-sdk is not installed; left out (pip install sentry-sdk)", file=sys.stderr)
            return found

        class Nowhere(Transport):
            def capture_envelope(self, envelope: Any) -> None: ...

        sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", transport=Nowhere, default_integrations=False)
        inner = _application()
        asyncio.run(_call_us(inner, "/good/1", 1))
        found["sentry-sdk ASGI"] = SentryAsgiMiddleware(inner)
    finally:
        state.current = witness
    return found


if __name__ == "__main__":
    main()
