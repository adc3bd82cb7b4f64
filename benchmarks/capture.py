"""
What one capture costs, beside what others cost for the same exception, in one run.

    python -m benchmarks.capture

The exception has 13 frames in 13 functions. *First sight* knows none of the frames; *frames known* is a
new place made of frames that were seen in other places; *again* is the same place with another message,
written out in full; *storm* is the same place when it has written enough and is only counted. In all of
them 30 breadcrumbs wait that an earlier error has told; with *new breadcrumbs* there are 30 new ones each
time, as in a request that has logged so much before it fails. The database is away, so that nothing else
runs beside what is measured; the spool is real.
"""

from __future__ import annotations

import importlib
import logging
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FRAMES = 13
ROUNDS = 300
BREADCRUMBS = 30


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        raising = _make_module(Path(folder))
        rows = [("traceback.format_exception", _median_us(traceback.format_exception, _errors(raising)))]
        rows += _tocsin(folder, raising)
        rows += _others(raising)
    base = rows[0][1]
    print(f"{FRAMES} frames, median of {ROUNDS}, Python {sys.version.split()[0]}")
    for name, cost_us in rows:
        print(f"{name:44} {cost_us:9.1f} µs   {cost_us / base:6.2f} ×")


def _make_module(folder: Path) -> Any:
    """A module whose functions call each other, and end in an error."""
    functions = [
        f"def step_{at}(value):\n    total = value + {at}\n    result = step_{at + 1}(total) if total else None\n"
        f"    return result\n\n"
        for at in range(FRAMES - 2)
    ]
    functions.append(
        f"def step_{FRAMES - 2}(value):\n    name = 'phone'\n    raise ValueError(f'{{name}} {{value}} is wrong')\n"
    )
    (folder / "raising.py").write_text("".join(functions))
    sys.path.insert(0, str(folder))
    return importlib.import_module("raising")


def _errors(module: Any, many: int = ROUNDS) -> list[BaseException]:
    found: list[BaseException] = []
    for number in range(many):
        try:
            module.step_0(number + 1)
        except ValueError as error:
            found.append(error)
    return found


def _median_us(
    function: Callable[[BaseException], object],
    errors: Sequence[BaseException],
    prepare: Callable[[], object] = lambda: None,
) -> float:
    costs = []
    for error in errors:
        prepare()
        before = time.perf_counter_ns()
        function(error)
        costs.append(time.perf_counter_ns() - before)
    return statistics.median(costs) / 1000


def _tocsin(folder: str, module: Any) -> list[tuple[str, float]]:
    import tocsin
    from tocsin.instrumentation import capture, stacks

    tocsin.init(service="bench", database_url="postgresql://nobody@127.0.0.1:1/away", spool_dir=f"{folder}/spool")
    logger = logging.getLogger("shop.orders")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.FileHandler(os.devnull))

    def leave_crumbs() -> None:
        for number in range(BREADCRUMBS):
            logger.info("order %d of customer %s is paid by card", number, "anna")

    leave_crumbs()
    forget_links = stacks._links.clear
    always = 10**9
    limits = capture.FULL_PER_SECOND, capture.FULL_IN_ALL_PER_SECOND
    capture.FULL_PER_SECOND = capture.FULL_IN_ALL_PER_SECOND = always  # type: ignore[misc]

    def forgetting(forget: Callable[[], None]) -> float:
        costs = []
        for error in _errors(module):
            forget()
            costs.append(_median_us(tocsin.track_error, [error]))
        return statistics.median(costs)

    rows = [("tocsin, first sight", forgetting(stacks.forget)), ("tocsin, frames known", forgetting(forget_links))]
    rows.append(("tocsin, again, with the spool write", _median_us(tocsin.track_error, _errors(module))))
    rows.append(("tocsin, again, with new breadcrumbs", _median_us(tocsin.track_error, _errors(module), leave_crumbs)))
    capture.FULL_PER_SECOND, capture.FULL_IN_ALL_PER_SECOND = limits  # type: ignore[misc]
    storm = _errors(module, 3000)
    _median_us(tocsin.track_error, storm[:10])
    rows.append(("tocsin, in a storm", _median_us(tocsin.track_error, storm[10:])))
    tocsin.shutdown()
    return rows


def _others(module: Any) -> list[tuple[str, float]]:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    rows = []
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(InMemoryLogRecordExporter()))  # type: ignore[no-untyped-call]
    logger = provider.get_logger("bench")
    rows.append(
        ("OpenTelemetry, emit(exception=…)", _median_us(lambda error: logger.emit(exception=error), _errors(module)))
    )
    try:
        import sentry_sdk
        from sentry_sdk.transport import Transport
    except ImportError:
        print("sentry-sdk is not installed; left out (pip install sentry-sdk)", file=sys.stderr)
        return rows

    class Nowhere(Transport):
        def capture_envelope(self, envelope: Any) -> None: ...

    sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", transport=Nowhere, default_integrations=False)
    rows.append(("sentry-sdk, capture_exception", _median_us(sentry_sdk.capture_exception, _errors(module))))
    return rows


if __name__ == "__main__":
    main()
