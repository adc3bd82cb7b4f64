"""
From the end of a watched program to an error: what it was, why, and the last that it said.

Node and Python print the exception that ends them. Where the end of stderr shows one, the error is that
exception, with its stack, and so of the same group as when an instrumentation had reported it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tocsin import semconv
from tocsin.exporter import scrub
from tocsin.exporter.drain import Drain
from tocsin.exporter.spool import VERSION
from tocsin.ids import uuid7
from tocsin.instrumentation.capture import resource
from tocsin.instrumentation.start import EXIT_TIMEOUT_S, open_spool
from tocsin.settings import Settings, service_name
from tocsin.text import STACK_LIMIT, clean, one_line

MECHANISM = "process-exit"
_FATAL = 21  # OpenTelemetry's number for what ends a process
_COMMAND_LIMIT = 200
_SAYS_SOON_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a program ended."""

    command: Sequence[str]
    pid: int
    code: int  #                  exit code, or the negative number of the signal that killed it
    asked: Sequence[int] = ()  #  signals that came for it before
    began_ns: int
    ended_ns: int
    oom_kills: int | None = None  # by the kernel, for want of memory, while it ran; None: not known
    stderr: bytes = b""  #        the end of it


@dataclass(frozen=True, slots=True)
class Printed:
    """An exception as a runtime prints it when it ends a process."""

    type: str
    message: str
    stack: str


def report(death: Death, told: str = "") -> None:
    """
    Record a death: on the disk first, then stored within a bound; else whoever comes next stores it.

    Args:
        told: the file in which a process of the program notes that it has told of a fatal exception itself.
    """
    if death.code > 0 and _was_told(told):
        return
    settings, _ = Settings.load_leniently()
    settings = settings.with_names(service_name(death.command), None)
    scrub.hide(settings.secrets())
    spool = open_spool(settings, _header(death, settings))
    if spool is None:
        return
    spool.append(as_line(death), durable=True)
    drain = Drain(settings, spool, spool.folder, _say)
    drain.start()
    spool.close(everything_stored=drain.finish(EXIT_TIMEOUT_S))


def _was_told(told: str) -> bool:
    """Whether the program's own last words are with us already; an older note is of some worker of it."""
    with suppress(OSError):
        return time.time() - os.stat(told).st_mtime < _SAYS_SOON_S  # noqa: PTH116
    return False


def _header(death: Death, settings: Settings) -> dict[str, Any]:
    own = resource(settings.service, settings.environment, settings.release, uuid7())
    del own[semconv.RUNTIME_VERSION]  # that is ours
    return {"resource": own | {semconv.PROCESS_PID: death.pid}, "started_ns": death.began_ns}


def as_line(death: Death) -> bytes:
    """The death as a line of the spool, cleaned and scrubbed."""
    said = clean_output(death.stderr)
    printed = exception_in(said) if death.code > 0 else None
    attributes: dict[str, Any] = {
        semconv.EXCEPTION_TYPE: printed.type if printed else "ProcessExit",
        semconv.MECHANISM: MECHANISM,
        semconv.HANDLED: False,
        semconv.SEVERITY: "critical",
        semconv.EXIT: True,
        semconv.PROCESS_COMMAND: shown(death.command),
        semconv.PROCESS_UPTIME: round((death.ended_ns - death.began_ns) / 1e9, 3),
    }
    if printed:
        attributes[semconv.EXCEPTION_STACKTRACE] = clean(printed.stack, STACK_LIMIT)
    else:
        attributes[semconv.PLACE] = place_of(death)
    if death.code > 0:
        attributes[semconv.PROCESS_EXIT_CODE] = death.code
    else:
        attributes[semconv.PROCESS_EXIT_SIGNAL] = signal_name(-death.code)
    if death.oom_kills is not None:
        attributes[semconv.PROCESS_OOM_KILLS] = death.oom_kills
    if said:
        attributes[semconv.PROCESS_STDERR] = said
    line = {
        "v": VERSION,
        "kind": "error",
        "id": uuid7(death.ended_ns),
        "time_unix_nano": death.ended_ns,
        "severity_number": _FATAL,
        "event_name": semconv.EVENT_EXCEPTION,
        "trace_id": None,
        "span_id": None,
        "body": clean(printed.message) if printed else message_of(death, said),
        "attributes": attributes,
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


# In words.


def message_of(death: Death, said: str = "") -> str:
    """What happened, as people say it: ``node app.js was killed by SIGKILL (out of memory)``."""
    how = f"exited with code {death.code}" if death.code > 0 else f"was killed by {signal_name(-death.code)}"
    if death.code == -signal.SIGKILL and death.oom_kills != 0:
        how += " (out of memory)" if death.oom_kills else " (out of memory?)"
    if death.asked:
        how += f" after {signal_name(death.asked[-1])}"
    reason = _last(_REASON, said)
    return clean(f"{shown(death.command)} {how}{f': {one_line(reason[0])}' if reason else ''}")


# The last words of runtimes that do not print an exception: V8, Go, Rust.
_REASON = re.compile(r"^(?:FATAL ERROR: |panic: |thread '[^'\n]{0,200}' (?:\(\d+\) )?panicked at ).*$", re.MULTILINE)


def place_of(death: Death) -> str:
    """What tells one kind of end from another, in whichever words it is said."""
    return f"exit code {death.code}" if death.code > 0 else signal_name(-death.code)


def shown(command: Sequence[str]) -> str:
    """A command as people name it, without its folder and what is secret in its arguments."""
    words = [command[0].rpartition("/")[2] or command[0], *command[1:]]
    return one_line(clean(scrub.scrub_text(shlex.join(words))), _COMMAND_LIMIT)


def signal_name(number: int) -> str:
    """``SIGTERM``; a real-time signal has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_COLOUR = re.compile(r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,512}(?:\x07|\x1b\\))")


def clean_output(output: bytes) -> str:
    """The end of an output as text that everything can take: no colours, no secrets, whole lines where it was cut."""
    text = _COLOUR.sub("", output.decode("utf-8", "replace")).replace("\r\n", "\n")
    return clean(scrub.scrub_text(text), STACK_LIMIT).strip("\n")


# What runtimes print of the exception that ends them.


def exception_in(said: str) -> Printed | None:
    """The exception that an output ends with, if it does."""
    return _node(said) or _python(said)


_NODE_END = re.compile(r"^Node\.js v\d[\w.-]*$", re.MULTILINE)
# The place that threw, its line, the mark under it; a blank line; then what `util.inspect` makes of the error.
_NODE_HEAD = re.compile(
    r"^[^\n]{1,1000}:\d{1,9}\n[^\n]*\n[^\n]*\n\n(?=[A-Z_$][\w$.]{0,200}(?: \[\w{1,200}\])?(?::|\n))", re.MULTILINE
)
_NODE_NAME = re.compile(r"([\w$.]+)(?: \[\w+\])?(?:: )?")
_NODE_CODE = re.compile(r"^  \[?code\]?: (?:'([^'\n]{1,200})'|(\d{1,9}))", re.MULTILINE)
_ELIDED = re.compile(r"    \.\.\. (\d{1,3}) lines matching cause stack trace \.\.\.")


def _node(said: str) -> Printed | None:
    """As Node prints an uncaught exception; type, message and stack as its OpenTelemetry SDK reads them off it."""
    end = _last(_NODE_END, said)
    head = _last(_NODE_HEAD, said[: end.start()]) if end else None
    if end is None or head is None:
        return None
    lines = said[head.end() : end.start()].rstrip("\n").split("\n")
    first = next((at for at, line in enumerate(lines) if line.startswith("    at ")), None)
    if first is None:
        return None
    after = next((at for at, line in enumerate(lines) if at > first and not _is_node_frame(line)), len(lines))
    text = "\n".join(lines[:first])
    name = _NODE_NAME.match(text)
    if name is None:
        return None
    frames = [*lines[first : after - 1], lines[after - 1].removesuffix(" {")]
    more = "\n".join(lines[after:])
    code = _NODE_CODE.search(more)
    kind = (code[1] or code[2]) if code else name[1]
    return Printed(kind, text[name.end() :], "\n".join([text, *_with_elided(frames, more.split("\n"))]))


def _is_node_frame(line: str) -> bool:
    return line.startswith("    at ") or _ELIDED.fullmatch(line) is not None


def _with_elided(frames: Sequence[str], more: Sequence[str]) -> Iterator[str]:
    """All frames: those that an error has in common with its cause are printed with the cause alone."""
    before = ""
    others = [line.strip() for line in more]
    for frame in frames:
        elided = _ELIDED.fullmatch(frame)
        if elided is None:
            yield frame
            before = frame.strip()
        elif before in others:
            start = others.index(before) + 1
            yield from (f"    {line}" for line in others[start : start + int(elided[1])] if line.startswith("at "))


_TRACEBACK = "Traceback (most recent call last):"
_JOINT = re.compile(
    r"\n\n(?:The above exception was the direct cause of the following exception:"
    r"|During handling of the above exception, another exception occurred:)\n\n\Z"
)
_OURS = re.compile(r"^(?:tocsin: |(?:CRITICAL|HIGH|MEDIUM|LOW) \S+ #\d+ ).*\n?", re.MULTILINE)
_PYTHON_NAME = re.compile(r"([A-Za-z_][\w.]{0,300})(?:: |\Z)")
_LAST_LINES = 20


def _python(said: str) -> Printed | None:
    """As Python prints an uncaught exception, with what it came from."""
    said = _OURS.sub("", said).rstrip("\n")
    start = _start_of_last(said)
    if start is None:
        return None
    lines = said[start:].split("\n")
    at = next((number for number, line in enumerate(lines[1:], 1) if line[:1] not in ("", " ")), None)
    name = _PYTHON_NAME.match(lines[at]) if at is not None else None
    if at is None or name is None or len(lines) - at > _LAST_LINES:  # it went on after it
        return None
    message = "\n".join([lines[at][name.end() :], *lines[at + 1 :]])
    while (joint := _JOINT.search(said[:start])) and (before := _start_of_last(said[: joint.start()])) is not None:
        start = before
    return Printed(name[1], message, said[start:])


def _start_of_last(said: str) -> int | None:
    """Where the last traceback begins."""
    at = said.rfind(_TRACEBACK)
    return at if at >= 0 and (at == 0 or said[at - 1] == "\n") else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007
        pass
    return found


def _say(text: str) -> None:
    with suppress(Exception):
        sys.stderr.write(text + "\n")
