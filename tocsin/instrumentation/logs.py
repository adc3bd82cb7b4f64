"""
Log lines at level ERROR and above are errors; an exception that they carry is the error itself. Those below
are breadcrumbs of the errors that come after them.

The hook is in `logging.Logger.callHandlers`, which every line passes whatever handlers, levels and
propagation a program sets up, and which `dictConfig` leaves alone.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from threading import get_ident
from typing import Any, Final

from tocsin import semconv
from tocsin.contained import contained, note, own_threads, pass_on
from tocsin.exporter.raw import qualname_of
from tocsin.instrumentation import crumbs, stacks, state
from tocsin.instrumentation.state import Sighting

LEVELS: Final = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}

# Ours, and what reports an exception that another hook has seen or will see.
_LEFT_OUT: Final = ("tocsin", "opentelemetry")
# What they say of a call below a warning is in the call's own breadcrumb; what asyncio says is of no use.
_CHATTER: Final = ("httpx", "httpcore", "urllib3", "asyncio")
_ECHOES: Final = {
    ("uvicorn.error", "Application startup failed. Exiting."),
    ("uvicorn.error", "Cancel %s running task(s), timeout graceful shutdown exceeded"),  # each is named
    ("gunicorn.error", "WORKER TIMEOUT (pid:%s)"),  # told by the worker
    ("multiprocessing", "Process %r pid:%r exited with %r"),  # of Celery's pool
}
# What gunicorn says of workers that have ended, and of its own end for want of one: each has told why by itself.
_ENDS: Final = {"gunicorn.error": ("Worker (pid:", "Shutting down: ", "Reason: ")}
# The functions of frameworks that log what their hook has seen, or the layer around a request will see.
_REPORTERS: Final = {
    "log_response": "django",
    "log_message": "django",
    "_log": "werkzeug",
    "_log_error": "celery.app.trace",
    "on_timeout": "celery.worker.request",
    "handle_exception": "rq.worker",
}


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
            return
        original(self, record)
        if crumbs.most and state.current is not None:
            try:
                _leave(self, record)
            except Exception as problem:
                note("leaving a breadcrumb", problem)

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
    if _is_echo(record):
        return
    exc_info = record.exc_info if isinstance(record.exc_info, tuple) else (None, None, None)
    exc = exc_info[1]
    if qualname_of(type(exc)) == "ExceptionWithTraceback":  # how Celery's pool hands an exception to its parent
        exc, exc_info = getattr(exc, "exc", exc), (None, None, None)
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
        seen.template = _template(record)
    seen.level, seen.logger, seen.facts, seen.attributes = record.levelno, name, _extra(record), attributes
    capture.see(seen)


def _leave(logger: logging.Logger, record: logging.LogRecord) -> None:
    """
    Leave a line as a breadcrumb, once the program's own handlers have had it.

    What they made of its arguments stands in the record by then, so that nothing is made twice, and nothing
    that the program would not have made.
    """
    level = record.levelno
    if level < _least_of(record.name) or get_ident() in own_threads:
        return
    message = record.__dict__.get("message")
    if message is None:
        message = _unmade(record) if _is_emitted(logger, level) else None
    if type(message) is str:
        crumbs.log_line(record.created, level, record.name, message)


@functools.lru_cache(maxsize=1000)
def _least_of(name: str) -> int:
    """From which level a logger's lines are breadcrumbs."""
    first = name.partition(".")[0]
    return _NEVER if first in _LEFT_OUT else logging.WARNING if first in _CHATTER else logging.NOTSET


_NEVER: Final = 10**9


def _is_emitted(logger: logging.Logger | None, level: int) -> bool:
    """Whether one of the handlers that a line passes takes its level."""
    while logger is not None:
        for handler in logger.handlers:
            if level >= handler.level and not isinstance(handler, logging.NullHandler):
                return True
        logger = logger.parent if logger.propagate else None
    return False


def _unmade(record: logging.LogRecord) -> str | None:
    """The message of a line that a handler formats in a way of its own; only plain arguments are put into it."""
    template, arguments = record.msg, record.args
    if type(template) is dict:  # as structlog hands it on
        template, arguments = template.get("event"), None
    if type(template) is not str:
        return None
    if type(arguments) is not tuple or not arguments or not _PLAIN.issuperset(map(type, arguments)):
        return template
    try:
        return template % arguments
    except (TypeError, ValueError):
        return template


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def _is_echo(record: logging.LogRecord) -> bool:
    """Whether a line tells what is told already, or will be, with more to it."""
    reporter = _REPORTERS.get(record.funcName)
    if reporter is not None and (record.name == reporter or record.name.startswith(f"{reporter}.")):
        return True
    if type(record.msg) is not str:
        return False
    return (record.name, record.msg) in _ECHOES or record.msg.startswith(_ENDS.get(record.name, ()))


def _message(record: logging.LogRecord) -> str:
    try:
        return stacks.tidy(str.__str__(record.getMessage()))
    except BaseException as problem:  # a line whose arguments do not fit, or raise whatever they like
        pass_on(problem)
        return stacks.tidy(f"{record.msg if type(record.msg) is str else '<a message>'} (its arguments do not fit)")


def _template(record: logging.LogRecord) -> str | None:
    """What the program wrote, before anything was put into it; None where that says nothing."""
    template = record.msg
    if not record.args or type(template) is not str:
        return None
    words = _PLACEHOLDER.sub("", template[:_MOST_OF_A_TEMPLATE])
    return template[:_MOST_OF_A_TEMPLATE] if sum(map(str.isalpha, words)) >= _LEAST_LETTERS else None


_PLACEHOLDER: Final = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(?:\*|\d+)?(?:\.(?:\*|\d+))?[a-zA-Z%]")
_MOST_OF_A_TEMPLATE: Final = 300
_LEAST_LETTERS: Final = 3

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _extra(record: logging.LogRecord) -> dict[str, Any] | None:
    """What was passed as ``extra=``; scrubbed when it is written."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD} or None
