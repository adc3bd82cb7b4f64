"""
tocsin: crash protection, error tracking and alerting for services, on OpenTelemetry.

Importing it loads nothing heavy; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tocsin import api as api
    from tocsin.instrumentation.asgi import TocsinMiddleware as TocsinMiddleware
    from tocsin.instrumentation.beat import beat as beat
    from tocsin.instrumentation.context import context as context
    from tocsin.instrumentation.dependency import dependency as dependency
    from tocsin.instrumentation.protect import protect as protect
    from tocsin.instrumentation.protect import track_error as track_error
    from tocsin.instrumentation.shutdown import on_shutdown as on_shutdown
    from tocsin.instrumentation.start import flush as flush
    from tocsin.instrumentation.start import init as init
    from tocsin.instrumentation.start import shutdown as shutdown

__version__ = "0.1.0"

_HOMES = {
    "init": "tocsin.instrumentation.start",
    "shutdown": "tocsin.instrumentation.start",
    "flush": "tocsin.instrumentation.start",
    "track_error": "tocsin.instrumentation.protect",
    "protect": "tocsin.instrumentation.protect",
    "beat": "tocsin.instrumentation.beat",
    "context": "tocsin.instrumentation.context",
    "dependency": "tocsin.instrumentation.dependency",
    "on_shutdown": "tocsin.instrumentation.shutdown",
    "TocsinMiddleware": "tocsin.instrumentation.asgi",
}

__all__ = [
    "TocsinMiddleware",
    "__version__",
    "api",
    "beat",
    "context",
    "dependency",
    "flush",
    "init",
    "on_shutdown",
    "protect",
    "shutdown",
    "track_error",
]


def __getattr__(name: str) -> Any:
    if name == "api":
        return importlib.import_module("tocsin.api")
    if name in _HOMES:
        from tocsin.loading import loading  # noqa: PLC0415

        with loading():  # in any thread, while another one forks
            value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tocsin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
