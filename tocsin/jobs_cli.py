"""`tocsin jobs`: how failed jobs read in a terminal, and how one is run again."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

from tocsin import rerun
from tocsin.contained import contained
from tocsin.exporter.scrub import scrub_text
from tocsin.failures import NotFound, TocsinError
from tocsin.instrumentation import protect
from tocsin.lifecycle import JobStatus, JobTrigger, Status, advance_job
from tocsin.terminal import COLOURS, moment, painted, safe, table
from tocsin.text import clean, one_line

Shape = dict[str, Any]

OK, FAILED = 0, 1

KEEP_EVERY_S: Final = 60.0
"""How often a run says that it goes on; well within `tocsin.store.jobs.SILENT_FOR`."""

_SHOWN_FRAMES = 5
_SHOWN_CHARACTERS = 200  # of an argument


class Jobs(Protocol):
    """What of `tocsin.local.Local` and `tocsin.remote.Remote` is needed here."""

    def job(self, name: str) -> Shape: ...

    def group(self, name: str) -> Shape: ...

    def begin_retry(self, number: int, *, by: str, runner: str) -> Shape: ...

    def keep_retry(self, number: int, *, by: str, runner: str) -> None: ...

    def end_retry(self, number: int, *, by: str, runner: str, is_done: bool, outcome: str) -> Shape: ...


# Looking


def listed(found: Sequence[Shape]) -> str:
    """A page of jobs as a table."""
    heads = ("JOB", "FAILED (UTC)", "STATUS", "SERVICE", "FUNCTION", "TRIES", "ERROR")
    return table(
        heads,
        [
            (
                job["number"],
                moment(job["failed_at"]),
                job["status"],
                job["service"],
                job["function"],
                job["tries"],
                ": ".join(filter(None, (job["exception_type"], job["message"]))),
            )
            for job in found
        ],
    )


def told(shape: Shape) -> Iterator[str]:
    """A job in lines for people."""
    job = shape["job"]
    yield painted(f"job {job['number']} {safe(job['function'])}", "bold")
    yield ""
    for name in ("status", "service", "environment", "release", "category", "file", "folder"):
        if job[name]:
            yield f"{name:14}{painted(safe(job[name]), COLOURS.get(str(job[name])))}"
    yield f"{'failed':14}{moment(job['failed_at'])} UTC, {safe(_error(job))}"
    if job["group"] is not None:
        yield f"{'group':14}#{job['group']}"
    if job["acted_by"]:
        yield f"{'acted on':14}{moment(job['acted_at'])} UTC by {safe(job['acted_by'])}"
    if job["outcome"]:
        yield f"{'last run':14}{safe(job['outcome'])}"
    yield ""
    yield from _arguments(job, {})
    attempts = [one for one in _list(job["attempts"]) if isinstance(one, dict)]
    if attempts:
        left_out = f" (of {job['tries']}, the last)" if job["tries"] > len(attempts) else ""
        yield ""
        yield table(
            (f"TRY{left_out}", "TOOK", "ERROR"),
            [(one.get("at"), f"{one.get('ms')} ms", f"{one.get('type')}: {one.get('message')}") for one in attempts],
        )
    if shape["history"]:
        yield ""
        yield table(
            ("WHEN (UTC)", "WHO", "BY WAY OF", "WHAT", ""),
            [(moment(row["at"]), row["actor"], row["via"], row["action"], row["detail"]) for row in shape["history"]],
        )
    if job["status"] == JobStatus.FAILED:
        where = f" in {safe(job['folder'])}" if job["folder"] else ""
        yield ""
        yield painted(f"Run it again{where}: tocsin jobs retry {job['number']}", "dim")


def _error(job: Shape) -> str:
    return ": ".join(filter(None, (job["exception_type"], job["message"]))) or "for no reason that was told"


def _arguments(job: Shape, given: Mapping[str, Any]) -> Iterator[str]:
    """One line for each; what was given on the command line is not repeated, it may be a secret."""
    arguments = job["arguments"] if isinstance(job["arguments"], dict) else {}
    args, kwargs = _list(arguments.get("args")), arguments.get("kwargs")
    named = {f"args.{at}": value for at, value in enumerate(args)}
    named |= {f"kwargs.{key}": value for key, value in (kwargs if isinstance(kwargs, dict) else {}).items()}
    for path, value in named.items():
        changed = [one for one in map(str, _list(job["changed"])) if _touches(one, path)]
        note = f"(not as it was: {', '.join(changed)})" if changed else ""
        if any(_touches(one, path) for one in given):
            yield f"{safe(path):14}(as given here)"
        else:
            shown = one_line(json.dumps(value, ensure_ascii=False), _SHOWN_CHARACTERS)
            yield f"{safe(path):14}{safe(shown)}  {safe(note)}".rstrip()
    for path in given.keys() - named.keys():
        yield f"{safe(path):14}(as given here)"
    if "arguments" in _list(job["changed"]) and not given:
        yield "its arguments were too long to be kept"
    elif not named and not given:
        yield "without arguments"


def _touches(one: str, other: str) -> bool:
    """Whether one path is within the other."""
    return rerun.is_covered(one, [other]) or rerun.is_covered(other, [one])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# Running one again


def retry(jobs: Jobs, name: str, given: Mapping[str, Any], *, by: str, asks: bool) -> int:
    """
    Run a job's function here, in the service's own environment, and say what it has come to.

    Args:
        name: the job's number or id.
        given: arguments that stand in for what the row has, by their paths: ``{"kwargs.token": …}``.
        asks: whether to ask before it is run; a terminal does, unless told otherwise.

    Returns:
        The exit code: 0 done, 1 failed again, 128 and the signal where it was interrupted.

    Raises:
        TocsinError: it cannot be run; the text says why. Nothing was run, and the job stands as before.
    """
    job = jobs.job(name)["job"]
    number = int(job["number"])
    if job["status"] != JobStatus.RUNNING:
        advance_job(JobStatus(job["status"]), JobTrigger.RETRY)
    args, kwargs = rerun.arguments_of(job, given)
    folder = Path.cwd()
    print(painted(f"job {number}: {safe(job['function'])}, here in {safe(folder)}", "bold"))
    for line in _arguments(job, given):
        print(f"  {line}")
    sys.stdout.flush()
    if asks and not _agrees():
        print("nothing was run")
        return FAILED
    function = rerun.find(job, folder)
    runner = f"{socket.gethostname()}, process {os.getpid()}"
    jobs.begin_retry(number, by=by, runner=runner)
    run = _Run()
    try:
        with _kept(lambda: jobs.keep_retry(number, by=by, runner=runner)):
            run.call(function, args, kwargs)
    finally:
        try:
            ended = jobs.end_retry(number, by=by, runner=runner, is_done=run.is_done, outcome=run.outcome)
        except TocsinError as problem:
            then = f"; say `tocsin jobs done {number}`" if run.is_done else ""
            raise TocsinError(f"job {number}: {run.outcome}, which could not be noted: {problem}{then}") from None
    _tell(jobs, ended, run)
    return run.code


def _agrees() -> bool:
    try:
        return input("Run it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


class _Run:
    """One call, and what it came to."""

    def __init__(self) -> None:
        self.is_done = False
        self.outcome = "interrupted"
        self.code = FAILED
        self._stopped_by = signal.SIGINT

    def call(self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> None:
        """Call it, and let nothing out: whatever happens is for the row."""
        began = time.monotonic()
        before = signal.signal(signal.SIGTERM, self._stop)
        try:
            protect.rerun(function, args, kwargs)
            self.is_done, self.code = True, OK
            self.outcome = f"done after {time.monotonic() - began:.2f} s"
        except KeyboardInterrupt:
            self.code = 128 + self._stopped_by
            self.outcome = f"interrupted after {time.monotonic() - began:.2f} s"
        except BaseException as problem:
            said = scrub_text(f"{type(problem).__name__}: {problem}"[:2000])
            self.outcome = one_line(clean(said, 300), 300)
            _print_short(problem)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._stopped_by = signal.Signals(number)
        raise KeyboardInterrupt


def _print_short(problem: BaseException) -> None:
    """The end of a traceback, without our own frames, and with nothing that steers a terminal."""
    own = str(Path(__file__).parent) + os.sep
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if not frame.filename.startswith(own)]
    lines = traceback.format_list(frames[-_SHOWN_FRAMES:]) + traceback.format_exception_only(problem)
    print(clean(scrub_text("".join(lines)), 8000).rstrip(), file=sys.stderr)


def _tell(jobs: Jobs, ended: Shape, run: _Run) -> None:
    number, status = ended["number"], ended["status"]
    if run.is_done and status == JobStatus.DONE:
        print(painted(f"job {number} is {safe(run.outcome)}", "green"))
        _tell_group(jobs, ended["group"])
    elif run.is_done:
        print(f"job {number} is {safe(run.outcome)}; meanwhile {safe(ended['acted_by'])} has made it {safe(status)}")
    else:
        still = f"it is {status}" if status != JobStatus.FAILED else "it stays in the list"
        print(f"tocsin: job {number} failed again ({safe(run.outcome)}); {still}", file=sys.stderr)


def _tell_group(jobs: Jobs, group: int | None) -> None:
    """That one job is done says nothing of the others of its group: a person resolves it."""
    if group is None:
        return
    try:
        status = jobs.group(str(group))["group"]["status"]
    except NotFound:
        return
    if status in (Status.OPEN, Status.ACKNOWLEDGED):
        print(f"group #{group} is still {status}: tocsin resolve {group}")


@contextmanager
def _kept(keep: Callable[[], None]) -> Iterator[None]:
    """Say every minute that the run goes on, so that nobody else takes it for dead."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(KEEP_EVERY_S):
            with contained("saying that a job is still run"):
                keep()

    thread = threading.Thread(target=run, name="tocsin-retry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
