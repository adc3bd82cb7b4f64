"""
Log lines at level ERROR and above are errors; an exception that they carry is the error itself.

The hook is in `logging.Logger.callHandlers`, which every line passes whatever handlers, levels and
propagation a program sets up, and which `dictConfig` leaves alone.
"""

from __future__ import annotations

import functools
import logging
import threading
from typing import Any, Final

from tocsin import semconv
from tocsin.contained import contained
from tocsin.instrumentation import stacks, state
from tocsin.instrumentation.state import Sighting

LEVELS: Final = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}

# Ours, and what reports an exception that another hook has seen or will see.
_LEFT_OUT: Final = ("tocsin", "opentelemetry")
_ECHOES: Final = {("uvicorn.error", "Application startup failed. Exiting.")}


class _Quiet(threading.local):
    depth: int = 0


_quiet = _Quiet()


class quiet:  # noqa: N801  (reads as a statement)
    """Log lines of this thread are not captured inside: their error is captured already."""

    def __enter__(self) -> None:
        _quiet.depth += 1

    def __exit__(self, *args: object) -> None:
        _quiet.depth -= 1


def install() -> None:
    """Hook the log lines; harmless when called twice."""
    original = logging.Logger.callHandlers
    if getattr(original, "_tocsin", False):
        return

    @functools.wraps(original)
    def callHandlers(self: logging.Logger, record: logging.LogRecord) -> None:  # noqa: N802
        if record.levelno >= _threshold():
            with contained("reading a log line"):
                _note(record)
        original(self, record)

    callHandlers._tocsin = True  # type: ignore[attr-defined]
    logging.Logger.callHandlers = callHandlers  # type: ignore[method-assign]


def uninstall() -> None:
    """Put back what `install` found, unless someone else has wrapped it since."""
    hooked = logging.Logger.callHandlers
    if getattr(hooked, "_tocsin", False):
        logging.Logger.callHandlers = hooked.__wrapped__  # type: ignore[method-assign, attr-defined]


def _threshold() -> int:
    settings = state.settings
    return LEVELS[settings.log_level] if settings is not None else logging.ERROR


def _note(record: logging.LogRecord) -> None:
    capture = state.current
    name = record.name
    if capture is None or _quiet.depth or name.partition(".")[0] in _LEFT_OUT:
        return
    if type(record.msg) is str and (name, record.msg) in _ECHOES:
        return
    exc_info = record.exc_info if isinstance(record.exc_info, tuple) else (None, None, None)
    exc = exc_info[1]
    attributes: dict[str, Any] = {
        semconv.CODE_FILE: record.pathname,
        semconv.CODE_LINE: record.lineno,
        semconv.CODE_FUNCTION: record.funcName,
    }
    message = _message(record)
    if exc is not None:
        seen = Sighting(exc, mechanism="logging", handled=True, tb=exc_info[2])
        attributes["log.message"] = message
    else:
        seen = Sighting(message, mechanism="logging", handled=True, place=f"{name} in {record.funcName}")
        seen.stack = f'  File "{record.pathname}", line {record.lineno}, in {record.funcName}\n'
    seen.level, seen.logger, seen.facts, seen.attributes = record.levelno, name, _extra(record), attributes
    capture.see(seen)


def _message(record: logging.LogRecord) -> str:
    try:
        return stacks.tidy(str.__str__(record.getMessage()))
    except BaseException:  # a line whose arguments do not fit, or raise whatever they like
        return stacks.tidy(f"{record.msg if type(record.msg) is str else '<a message>'} (its arguments do not fit)")


_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _extra(record: logging.LogRecord) -> dict[str, Any] | None:
    """What was passed as ``extra=``; scrubbed when it is written."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD} or None
