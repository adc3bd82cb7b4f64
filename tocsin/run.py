"""`tocsin run -- CMD…`: a user's program, instrumented without a code change."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tocsin.settings import Settings, git_release, service_name
from tocsin.text import one_line

STARTUP_FOLDER = Path(__file__).parent / "instrumentation" / "startup"


def run(command: Sequence[str], settings: Settings, problems: Sequence[str], *, traces: bool = False) -> int:
    """
    Become the program that `command` names; returns only where it cannot be started.

    The program takes the place of this process, so that signals, exit code and process id are as they
    would be without tocsin. Python is told by its path to start tocsin first.

    Args:
        problems: what is wrong with the settings; said here, in one line each, and the program starts.
        traces: add the OpenTelemetry ASGI instrumentation.

    Returns:
        127 when there is no such program, 126 when it cannot be run.
    """
    for problem in problems:
        _say(problem)
    service = settings.service or service_name(command)
    environ = dict(os.environ)
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP_FOLDER), environ.get("PYTHONPATH")]))
    environ["TOCSIN_SERVICE"] = service
    environ["TOCSIN_RUN"] = "1"
    if release := settings.release or git_release():
        environ["TOCSIN_RELEASE"] = release
    if traces:
        environ["TOCSIN_TRACES"] = "1"
    _say(f"watching {one_line(service, 60)} ({settings.environment}); errors go to {settings.shown_database()}")
    sys.stderr.flush()
    try:
        os.execvpe(command[0], list(command), environ)  # noqa: S606
    except FileNotFoundError:
        _say(f"there is no program {command[0]!r}")
        return 127
    except OSError as problem:
        _say(f"{command[0]!r} cannot be run: {problem.strerror}")
        return 126


def _say(text: str) -> None:
    sys.stderr.write(f"tocsin: {text}\n")
