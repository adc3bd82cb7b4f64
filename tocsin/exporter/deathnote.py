"""
From what is known of the end of a process to one error: pure functions, for whoever finds it.

Two may find it: the watching parent, which has seen the exit code, and whoever takes over the files of a
process that is gone, who has only what it left. Neither knows more than it says: what is only likely is
called so.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tocsin import packing, semconv
from tocsin.exporter import frames, scrub
from tocsin.exporter.life import LastWords, State
from tocsin.exporter.printed import exception_in
from tocsin.exporter.spool import LINE_BYTES, VERSION
from tocsin.model import Frame, Severity
from tocsin.text import STACK_LIMIT, clean, one_line

MECHANISM: Final = "process-exit"
EXCEPTION_TYPE: Final = "ProcessExit"
DUMP_BYTES: Final = 256 * 2**10
"""How much of a fault dump is read."""

_FATAL: Final = 21  # OpenTelemetry's number for what ends a process
_WARNING: Final = 13
_STOP_IS_OVER_S: Final = 900
_COMMAND_LIMIT: Final = 200
_SHORTER: Final = (STACK_LIMIT, 16 * 2**10, 2 * 2**10)
_WISHES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_OF_SUPERVISORS: Final = (signal.SIGKILL, signal.SIGABRT)
"""What ends a stop that takes too long: everybody's last word, and systemd's where it is asked for a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a process that has ended; times in nanoseconds of the epoch, 0 where nobody knows."""

    error_id: str
    service: str
    began_ns: int
    ended_ns: int
    command: Sequence[str] = ()
    code: int | None = None  #        exit code, or the negative number of the signal; None: nobody has seen it
    asked: Sequence[int] = ()  #      signals that came for it before
    stopping_ns: int = 0  #           since when it was asked to stop, where `words` do not say so
    words: LastWords | None = None  # what it said of itself
    dump: str = ""  #                 what faulthandler wrote
    oom_kills: int | None = None  #   by the kernel, for want of memory, while it ran; None: not known
    stderr: bytes = b""  #            the end of it
    has_core: bool = False  #         there is a core dump of it
    peak_bytes: int = 0  #            the most memory that it, or one that it waited for, ever took; 0: not known
    with_machine: bool = False  #     the machine has started anew since it was alive
    grew: str = ""  #                 what grew in its memory, as it has said itself; cleaned

    @property
    def name(self) -> str:
        """What died, as people call it."""
        return shown(self.command) if self.command else one_line(clean(self.service), _COMMAND_LIMIT)

    @property
    def stop_ns(self) -> int:
        """Since when it was asked to stop, 0 for never."""
        return self.stopping_ns or (self.words.stopping_ns if self.words else 0)

    @property
    def is_asked(self) -> bool:
        """Whether somebody has asked for the end, and not so long ago that it must have gone on living."""
        is_stopping = self.stop_ns > 0 and self.ended_ns - self.stop_ns < _STOP_IS_OVER_S * 10**9
        return is_stopping or bool(self.asked)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a process ended."""

    how: str | None  #            in a word, for its row: see `judge`; None: not known
    severity: Severity | None  # None: nothing to tell
    message: str = ""
    place: str = ""  #            what tells one kind of end from another


def judge(evidence: Evidence) -> Verdict:
    """
    How a process ended, and whether that is an error.

    In a word: ``ended`` (in order), ``stopped`` (in order, asked for), ``stopped late`` (it was killed
    since that took too long), ``exited: 3``, ``left: 3`` (by `os._exit`), ``killed: SIGKILL``,
    ``killed`` (likely), ``crashed: SIGSEGV``, ``lost with the machine``.
    """
    return _nobody_saw(evidence) if evidence.code is None else _seen(evidence, evidence.code)


def _seen(evidence: Evidence, code: int) -> Verdict:
    if code == 0 or (-code if code < 0 else code - 128) in evidence.asked:
        return _in_order(evidence)
    number = -code if code < 0 else code - 128  # a shell says 137 for a SIGKILL
    if evidence.is_asked and number in _OF_SUPERVISORS and not evidence.oom_kills:
        return _late(evidence)
    place = f"exit code {code}" if code > 0 else signal_name(-code)
    how = f"exited: {code}" if code > 0 else f"{'crashed' if -code in _CRASHES else 'killed'}: {place}"
    said = said_of(code)
    if code == -signal.SIGKILL and evidence.oom_kills != 0:
        said += " (out of memory)" if evidence.oom_kills else " (out of memory?)"
    if evidence.asked:
        said += f" after {signal_name(evidence.asked[-1])}"
    # A `kill` of the program itself, by a script with its number, is somebody's wish too: worth a note, and no ring.
    severity = Severity.MEDIUM if -code in _WISHES else Severity.CRITICAL
    return Verdict(how, severity, f"{evidence.name} {said}", place)


def _nobody_saw(evidence: Evidence) -> Verdict:
    words = evidence.words
    state = words.state if words is not None else State.UNMARKED
    if words is None or state == State.UNMARKED:
        return Verdict(None, None)
    if state == State.ENDED:
        return _in_order(evidence)
    if state == State.LEFT or (state == State.TOLD and words.exit_code):
        code = words.exit_code
        how = f"left: {code}"
        if code == 0 or evidence.is_asked:
            return Verdict(how, None)
        return Verdict(how, Severity.CRITICAL, f"{evidence.name} was left by os._exit({code})", f"os._exit({code})")
    name = crash_in(evidence.dump)
    if name is not None and not (evidence.is_asked and name == "SIGABRT"):
        return Verdict(
            f"crashed: {name}", Severity.CRITICAL, f"{evidence.name} crashed by {name} (likely)", f"crash by {name}"
        )
    if evidence.is_asked:
        return _late(evidence)
    if evidence.with_machine:
        said = "ended without a word: likely with the machine, which has restarted since"
        return Verdict("lost with the machine", Severity.CRITICAL, f"{evidence.name} {said}", "machine restarted")
    said = "ended without a word: likely killed (SIGKILL, or for want of memory)"
    return Verdict("killed", Severity.CRITICAL, f"{evidence.name} {said}", "no last word")


def _in_order(evidence: Evidence) -> Verdict:
    return Verdict("stopped" if evidence.is_asked else "ended", None)


def _late(evidence: Evidence) -> Verdict:
    """It was asked to stop and killed before it had: no death, but somebody may want to give it more time."""
    said = f"{evidence.name}: stop ran out of time"
    if evidence.stop_ns:
        said += f" after {max(evidence.ended_ns - evidence.stop_ns, 0) / 1e9:.0f} s"
    return Verdict("stopped late", Severity.MEDIUM, said, "stop ran out of time")


def as_line(evidence: Evidence) -> bytes | None:
    """The end as a line of the spool, cleaned, scrubbed and no longer than a line may be; None: no error."""
    verdict = judge(evidence)
    if verdict.severity is None:
        return None
    for limit in _SHORTER:
        line = _line(evidence, verdict, verdict.severity, limit)
        if len(line) <= LINE_BYTES:
            break
    return line


def _line(evidence: Evidence, verdict: Verdict, severity: Severity, limit: int) -> bytes:
    said = clean_output(evidence.stderr)[-limit:]
    printed = exception_in(said) if evidence.code is not None and evidence.code > 0 else None
    dump = parse_dump(evidence.dump) if verdict.severity == Severity.CRITICAL else Dump()
    attributes: dict[str, Any] = {
        semconv.EXCEPTION_TYPE: printed.type if printed else EXCEPTION_TYPE,
        semconv.MECHANISM: MECHANISM,
        semconv.HANDLED: False,
        semconv.SEVERITY: str(severity),
        semconv.EXIT: True,
        **figures(evidence),
    }
    if printed:
        attributes[semconv.EXCEPTION_STACKTRACE] = clean(printed.stack, limit)
        message = clean(printed.message)
    else:
        attributes[semconv.PLACE] = verdict.place
        reason = _last(_REASON, said)
        message = clean(f"{verdict.message}{f': {one_line(reason[0])}' if reason else ''}")
        if evidence.oom_kills and evidence.grew:
            attributes[semconv.TEMPLATE] = message  # whatever grew, it is the same
            message = clean(f"{message}; grew most: {evidence.grew}")
        if dump.stack:
            attributes[semconv.EXCEPTION_STACKTRACE] = clean(dump.stack, limit)
        if dump.frames:
            attributes[semconv.FRAMES] = [packing.shown(frame) for frame in dump.frames]
    if said:
        attributes[semconv.PROCESS_STDERR] = said
    line = {
        "v": VERSION,
        "kind": "error",
        "id": evidence.error_id,
        "time_unix_nano": evidence.ended_ns,
        "severity_number": _FATAL if severity == Severity.CRITICAL else _WARNING,
        "event_name": semconv.EVENT_EXCEPTION,
        "trace_id": None,
        "span_id": None,
        "body": message,
        "attributes": attributes,
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def figures(evidence: Evidence) -> dict[str, Any]:
    """How it was, in figures; what is not known is left out."""
    code, words = evidence.code, evidence.words
    if code is None and words is not None and words.exit_code:
        code = words.exit_code
    crash = signal_name(-code) if code is not None and code < 0 else crash_in(evidence.dump)
    found: dict[str, Any] = {
        semconv.PROCESS_COMMAND: shown(evidence.command) if evidence.command else None,
        semconv.PROCESS_UPTIME: _seconds(evidence.began_ns, evidence.ended_ns),
        semconv.PROCESS_EXIT_CODE: code if code is not None and code > 0 else None,
        semconv.PROCESS_EXIT_SIGNAL: crash,
        semconv.PROCESS_CORE: evidence.has_core or None,
        semconv.PROCESS_OOM_KILLS: evidence.oom_kills,
        semconv.PROCESS_PEAK: evidence.peak_bytes or None,
        semconv.PROCESS_STOPPING: _seconds(evidence.stop_ns, evidence.ended_ns),
        semconv.PROCESS_GREW: evidence.grew or None,
    }
    if words is not None:
        found[semconv.PROCESS_MEMORY] = words.memory_bytes or None
        found[semconv.PROCESS_ACTIVE_REQUESTS] = words.active_requests
    return {key: value for key, value in found.items() if value is not None}


def _seconds(from_ns: int, to_ns: int) -> float | None:
    return round((to_ns - from_ns) / 1e9, 3) if 0 < from_ns <= to_ns else None


# In words.

# The last words of runtimes that do not print an exception: V8, Go, Rust.
_REASON = re.compile(r"^(?:FATAL ERROR: |panic: |thread '[^'\n]{0,200}' (?:\(\d+\) )?panicked at ).*$", re.MULTILINE)


def said_of(code: int) -> str:
    """``exited with code 3``, ``was killed by SIGKILL``."""
    return f"exited with code {code}" if code > 0 else f"was killed by {signal_name(-code)}"


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


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007
        pass
    return found


# What faulthandler writes when a fatal signal comes.

_CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
)
_FAULT: Final = "Fatal Python error: "
_SIGNALS: Final = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}
_THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-fA-F]{1,32}\b[^\n]{0,200}:")
_FRAME = re.compile(r'  File "([^\n]{1,1024})", line (\d{1,9}) in ([^\n]{1,512})')
_MOST_FRAMES: Final = 100  # as many as faulthandler writes of a thread


@dataclass(frozen=True, slots=True)
class Dump:
    """A fault dump, the thread that failed before the others."""

    signal: str | None = None  # None: there was none, or in words that are not known
    stack: str = ""
    frames: list[Frame] = field(default_factory=list)  # of that thread, outermost first


def crash_in(dump: str) -> str | None:
    """The signal that a fault dump tells of; None where it tells of none."""
    start = dump.rfind(_FAULT)
    if start < 0:
        return None
    return _SIGNALS.get(dump[start + len(_FAULT) :].partition("\n")[0].strip())


def parse_dump(dump: str) -> Dump:
    """
    A fault dump's stacks, scrubbed; never raises, and finds none in what is no dump.

    Args:
        dump: what was in the file, of which nobody knows who has written to it since.
    """
    name = crash_in(dump)
    if name is None:
        return Dump()
    text = dump[dump.rfind(_FAULT) :][:DUMP_BYTES]
    head, *threads = _threads_of(text)
    current = next((thread for thread in threads if thread.startswith("Current")), None)
    # It comes last where it is the main thread: what is too long loses its end.
    ordered = [one for one in (head, current) if one is not None] + [one for one in threads if one is not current]
    stack = scrub.scrub_text("\n\n".join(one.strip("\n") for one in ordered)[:STACK_LIMIT])
    return Dump(name, stack, _frames_of(scrub.scrub_text(current[:STACK_LIMIT])) if current else [])


def _threads_of(text: str) -> list[str]:
    """What comes before the first thread, then each thread."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _THREAD.match(line):
            parts.append([])
        elif len(parts) > 1 and line[:1] not in ("", " "):
            parts[0].append(line)  # behind the threads: a list of modules
            continue
        parts[-1].append(line)
    return ["\n".join(lines) for lines in parts]


def _frames_of(thread: str) -> list[Frame]:
    found: list[Frame] = []
    for line in thread.split("\n"):
        match = _FRAME.fullmatch(line)
        if match is None:
            continue
        file, function = clean(match[1]), clean(match[3])
        module, own = frames.module_of(file), frames.in_app(file)
        found.append(Frame(module=module, function=function, file=file, line=int(match[2]), in_app=own))
        if len(found) >= _MOST_FRAMES:
            break
    return found[::-1]
