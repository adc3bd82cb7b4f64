"""
The exception that a runtime prints when it ends a process, out of the end of its stderr.

Node and Python do that. It is read as their instrumentations have it, so that the error is of the same
group as when one of them had reported it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Printed:
    """An exception as a runtime prints it when it ends a process."""

    type: str
    message: str
    stack: str


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
