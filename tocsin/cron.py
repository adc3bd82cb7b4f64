"""
`tocsin beat NAME`: a sign of life of a cron job, and the job itself where a command is given.

The job comes first. It runs as it would without: stdin, stdout and signals are its own, and its end is ours. What
is told of it waits on the disk where neither database nor server can be reached, which costs the job seconds at
most, and is told by whichever tocsin of this machine comes next.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from tocsin import clock, semconv, watch
from tocsin.exporter import facts, scrub
from tocsin.exporter import spool as spooling
from tocsin.exporter.drain import Drain, sink_of
from tocsin.exporter.sink import Sink
from tocsin.exporter.spool import Spool
from tocsin.failures import TocsinError
from tocsin.settings import Settings, substitute_spool_dir
from tocsin.text import clean

T = TypeVar("T")

SERVICE: Final = "cron"
"""Where nobody names a service."""

WITHIN_S: Final = 3.0
"""The most that telling may take, and once more that much for what was left behind before."""

_RELAY_S = 2.0
_READER_S = 10.0
_STDERR_CHARS = 1_500  # its end; `facts` bounds the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be told of."""

    name: str
    every_s: float | None
    grace_s: float | None
    message: str = ""


def run(job: Job, command: Sequence[str], settings: Settings, ask: Callable[[], str | None]) -> NoReturn:
    """
    Run the job, tell how it went, and end as it did; 127 where there is no such program, 126 where it cannot be run.

    Args:
        ask: what is wrong with the job's name, by whoever keeps the beats; asked when the job has ended.
    """
    plan = watch.Plan({"SERVICE": job.name})
    signals = watch.Signals.held()
    sentinel = watch.Sentinel()
    sentinel.stand()
    its = watch.Run(plan)
    code, stderr, problem = 0, b"", ""
    try:
        watch.launch(its, command, signals, os.environ, keeps_terminal=True)
    except OSError as why:
        code = 127 if isinstance(why, FileNotFoundError) else 126
        problem = f"{command[0]!r} cannot be run: {why.strerror}"
        _say(problem)
    else:
        if its.relay is not None:
            its.relay.start()
        watch.wait(its, plan, sentinel)
        stderr = its.relay.finish(_RELAY_S) if its.relay is not None else b""
        code = its.code
    took_s = time.monotonic() - its.began_s
    message = job.message if code == 0 else "; ".join(filter(None, [job.message, problem or _said(code, stderr)]))
    with suppress(Exception):  # whatever is wrong with us, the end is the job's
        if wrong := ask():
            _say(wrong)
        else:
            say_told(job, settings, is_ok=code == 0, took_s=took_s, message=message)
    if its.relay is not None:
        its.relay.let_go(_READER_S)
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    watch.end_as(code, signals.mask)


def _said(code: int, stderr: bytes) -> str:
    """How it has failed, with the end of what it wrote to stderr."""
    how = f"killed by {watch.signal_name(-code)}" if code < 0 else f"exit code {code}"
    text = stderr.decode("utf-8", "replace").strip()
    if len(text) > _STDERR_CHARS:
        text = text[-_STDERR_CHARS:].partition("\n")[2] or text[-_STDERR_CHARS:]
    return f"{how}\n{text}" if text else how


def say_told(job: Job, settings: Settings, *, is_ok: bool, took_s: float | None = None, message: str = "") -> bool:
    """Tell of a job, and say on stderr where that has to wait; False where not even that is possible."""
    try:
        is_stored, folder = tell(job, settings, is_ok=is_ok, took_s=took_s, message=message or job.message)
    except OSError as problem:
        _say(f"{job.name} could not be told: {problem}")
        return False
    if not is_stored:
        _say(f"{job.name} waits in {folder}, and is told by the next tocsin that runs here")
    return True


def tell(
    job: Job, settings: Settings, *, is_ok: bool, took_s: float | None = None, message: str = ""
) -> tuple[bool, Path]:
    """
    Write a beat down, and store or send it within a bound.

    Returns:
        Whether it is stored, or the server has it; and the folder where it waits if not.

    Raises:
        OSError: it could not even be written down.
    """
    scrub.hide(settings.secrets())
    line = facts.tidy(
        {
            "v": spooling.VERSION,
            "kind": "beat",
            "time_unix_nano": clock.now_ns(),
            "name": job.name,
            "every_s": job.every_s,
            "grace_s": job.grace_s,
            "ok": is_ok,
            "took_s": None if took_s is None else round(took_s, 3),
            "message": message,
        }
    )
    spool = _open_spool(settings)
    is_stored = False
    try:
        if not spool.append(json.dumps(line).encode() + b"\n", durable=True):
            raise OSError(f"the spool folder {spool.folder} is full, or its disk is")
        drain = Drain(settings, spool, spool.folder, sink=_loaded(settings, spool.folder))
        drain.start()
        drain.wake()
        is_stored = drain.finish(WITHIN_S)
    finally:
        spool.close(everything_stored=is_stored)
    if is_stored:
        _tell_rest(settings, spool.folder)
    return is_stored, spool.folder


def _open_spool(settings: Settings) -> Spool:
    """In the temporary folder where the set one cannot be used."""
    resource = {
        semconv.SERVICE_NAME: settings.service or SERVICE,
        semconv.DEPLOYMENT_ENVIRONMENT: settings.environment,
        semconv.HOST_NAME: os.uname().nodename,
    }
    # As of the door: a job is no instance that somebody watches, and its end is told here.
    header = {"door": True, "resource": resource, "started_ns": clock.now_ns()}
    why: OSError | None = None
    for folder in map(Path, (settings.spool_dir, substitute_spool_dir())):
        try:
            return Spool(folder, settings.spool_max_bytes or spooling.default_max_bytes(folder), header)
        except OSError as problem:
            why = why or problem
    raise OSError(f"the spool folder {settings.spool_dir} cannot be used: {why}")


def _loaded(settings: Settings, folder: Path) -> Sink:
    """Where it goes; what has to be imported for that is no part of the time that it may take."""
    if not settings.endpoint:
        from tocsin.store import errors, migrate  # noqa: F401, PLC0415
    return sink_of(settings, folder)


def _tell_rest(settings: Settings, folder: Path) -> None:
    """What could not be told before: this may be a machine on which nothing else of tocsin runs."""
    if not any(folder.glob("*.seg")):
        return
    done = threading.Event()
    drain = Drain(settings, None, folder, chores=(done.set,))
    drain.start()
    drain.wake()
    done.wait(WITHIN_S)
    drain.finish(0.5)


def within(ask: Callable[[], T]) -> T | None:
    """An answer that comes in time; None for none, and whoever hangs is left behind. What it raises is no answer."""
    answers: list[T] = []

    def run_it() -> None:
        with suppress(TocsinError, OSError):
            answers.append(ask())

    thread = threading.Thread(target=run_it, name="tocsin-ask", daemon=True)
    thread.start()
    thread.join(WITHIN_S)
    return answers[0] if answers else None


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(f"tocsin: {clean(text, 500)}\n")
        sys.stderr.flush()
