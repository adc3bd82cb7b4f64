"""
An alert as a letter: its subject, its text and its HTML, rendered from how things stand. Pure.

What came with an error is foreign: it is cut, cleaned of what steers a reader, and escaped by the
template. Nothing is loaded from elsewhere, and no address in it does anything but show a page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tocsin.alerts import messages
from tocsin.alerts.catalogue import Texts
from tocsin.alerts.rules import Reason, likely_cause_first
from tocsin.exporter.shown import frames_of, message_of
from tocsin.lifecycle import Status
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store.alerts import ErrorSeen, Subject
from tocsin.store.groups import Group
from tocsin.text import clean, one_line

SUBJECT_LIMIT = 200

_MESSAGE_LIMIT = 4000
_FRAMES_SHOWN = 12
_GROUPS_SHOWN = 40

# Dark enough under white letters, and to be told apart on a white page and on a black one.
_COLOURS = {
    Severity.CRITICAL: "#c62828",
    Severity.HIGH: "#b45309",
    Severity.MEDIUM: "#8a6d00",
    Severity.LOW: "#5f6b7a",
}
_DONE = "#2e7d32"
_PLAIN = "#3f5a8a"

_INSTALLED = re.compile(r".{0,1000}/(?:site|dist)-packages/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What a mail says; the subject is one line that fits in a header."""

    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """A line of the stack."""

    place: str
    code: str
    is_own: bool


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(subject: Subject, settings: Settings, now: datetime, *, to: str) -> Letter:
    """
    An alert's letter as things stand now.

    Args:
        to: who reads it; named at its end, with the setting that says so.
    """
    texts = Texts(settings.language)
    if subject.alert.reason == Reason.TEST or not subject.groups:
        return _test(settings, texts, to)
    if subject.alert.reason == Reason.FOLD:
        return _many(subject, settings, texts, to)
    return _one(subject, settings, texts, now, to)


def header(text: str) -> str:
    """Foreign text as a header can hold it: one line, at most 200 characters, nothing that is decoded again."""
    return one_line(clean(text, 2 * SUBJECT_LIMIT).replace("=?", "= ?"), SUBJECT_LIMIT)


def _one(subject: Subject, settings: Settings, texts: Texts, now: datetime, to: str) -> Letter:
    group, error = subject.groups[0], subject.error
    severity = texts(f"severity.{group.severity}")
    title = header(f"[tocsin] {severity} {group.service} #{group.number} {group.title}")
    status = messages.status_line(group, subject.act, settings, texts, now)
    frames = _frames(error)
    own = next((frame for frame in reversed(frames) if frame.is_own), None)
    values: dict[str, Any] = {
        "colour": _COLOURS[group.severity],
        "badge": severity,
        "number": group.number,
        "reason": texts(f"reason.{subject.alert.reason}"),
        "repeats": texts("alert.may_repeat") if subject.may_repeat else None,
        "kind": _line((error and error.exception_type) or group.exception_type or "", 200),
        "message": clean(message_of(error.message) if error else group.title, _MESSAGE_LIMIT).strip() or "-",
        "culprit": _line(group.culprit or "", 240),
        "own": own,
        "facts": _facts(group, error, settings, texts),
        "frames": frames[-_FRAMES_SHOWN:] if len(frames) > 1 else [],
        "stack_head": texts("mail.stack"),
        "status": status.plain if status else None,
        "links": _links(group, error, settings, texts),
    }
    return Letter(
        subject=title if subject.alert.reason == Reason.NEW else header(f"Re: {title}"),
        text=_as_text(values, _why(texts, to)),
        html=_as_html("alert.html", settings, title=title, why=_why(texts, to), **values),
    )


def _as_text(values: dict[str, Any], why: str) -> str:
    lines = [f"{values['badge']} #{values['number']} {values['reason']}", ""]
    lines += [values["repeats"], ""] if values["repeats"] else []
    lines += [values["kind"]] if values["kind"] else []
    lines += [values["message"], ""]
    own: _Frame | None = values["own"]
    if values["culprit"] or own:
        lines += [f"> {values['culprit'] or '-'}"]
        lines += [f"  {own.place}"] if own else []
        lines += [f"      {own.code}"] if own and own.code else []
        lines += [""]
    lines += [f"{name}: {value}" for name, value in values["facts"]] + [""]
    lines += [values["status"], ""] if values["status"] else []
    lines += [f"{name}: {url}" for name, url in values["links"]] + [""]
    if values["frames"]:
        lines += [f"{values['stack_head']}:"]
        lines += [f"{'>' if frame.is_own else ' '} {frame.place}  {frame.code}" for frame in values["frames"]] + [""]
    return "\n".join([*lines, "-- ", why]) + "\n"


def _many(subject: Subject, settings: Settings, texts: Texts, to: str) -> Letter:
    groups = likely_cause_first(subject.groups)
    head = texts("fold.head", count=len(groups))
    severity = texts(f"severity.{subject.alert.severity}")
    title = header(f"[tocsin] {severity} {head}: {groups[0].service} #{groups[0].number} {groups[0].title}")
    everyone = texts("fold.all", numbers=messages.numbers(group.number for group in groups))
    done = [group for group in groups if group.status not in (Status.OPEN, Status.ACKNOWLEDGED)]
    solved = texts("fold.solved", count=len(done)) if done else None
    shown = groups[:_GROUPS_SHOWN]
    repeats = texts("alert.may_repeat") if subject.may_repeat else None
    lines = [f"{severity} {head}", "", *([repeats, ""] if repeats else [])]
    for group in shown:
        lines += [
            f"#{group.number} {texts(f'severity.{group.severity}')} x{group.count:,} {_line(group.title, 200)}"
            f" ({_line(group.service, 60)})"
        ]
        lines += [f"    {url}"] if (url := messages.group_url(group.number, settings)) else []
    lines += ["", everyone, *([solved] if solved else []), "", "-- ", _why(texts, to)]
    values: dict[str, Any] = {
        "colour": _COLOURS[subject.alert.severity],
        "badge": severity,
        "head": head,
        "repeats": repeats,
        "rows": [_row(group, settings, texts) for group in shown],
        "everyone": everyone,
        "open": texts("mail.open_page"),
        "solved": solved,
    }
    html = _as_html("fold.html", settings, title=title, why=_why(texts, to), **values)
    return Letter(subject=title, text="\n".join(lines) + "\n", html=html)


def _row(group: Group, settings: Settings, texts: Texts) -> dict[str, Any]:
    """A group on one line of a fold."""
    is_open = group.status == Status.OPEN
    return {
        "colour": _COLOURS[group.severity] if is_open else _DONE,
        "badge": texts(f"severity.{group.severity}" if is_open else f"status.{group.status}"),
        "number": group.number,
        "url": messages.group_url(group.number, settings),
        "title": _line(group.title, 200),
        "where": " · ".join(_line(part, 100) for part in (group.service, group.culprit) if part),
        "count": f"×{group.count:,}",
    }


def _test(settings: Settings, texts: Texts, to: str) -> Letter:
    said = texts("alert.test")
    title = f"[tocsin] {texts('reason.test')}"
    why = _why(texts, to)
    html = _as_html("test.html", settings, title=title, why=why, colour=_PLAIN, badge=texts("reason.test"), said=said)
    return Letter(subject=title, text=f"{said}\n\n-- \n{why}\n", html=html)


def _as_html(name: str, settings: Settings, **values: Any) -> str:
    return _templates.get_template(name).render(language=settings.language, page=settings.public_url, **values)


def _why(texts: Texts, to: str) -> str:
    return texts("mail.why", address=to)


def _line(text: str, limit: int) -> str:
    return one_line(clean(text, limit * 2), limit)


def _facts(group: Group, error: ErrorSeen | None, settings: Settings, texts: Texts) -> Sequence[tuple[str, str]]:
    release = (error and error.release) or group.last_release
    facts = [
        (texts("alert.service"), _line(group.service, 100)),
        (texts("alert.environment"), _line(group.environment, 60)),
        (texts("alert.release"), _line(release or "", 80)),
        (texts("alert.count"), f"{group.count:,}"),
        (texts("alert.first"), _moment(group.first_seen, settings)),
        (texts("alert.last"), _moment(group.last_seen, settings)),
    ]
    return [(name, value) for name, value in facts if value]


def _moment(moment: datetime, settings: Settings) -> str:
    """Whole, since a mail may be read on another day, in another zone."""
    local = moment.astimezone(ZoneInfo(settings.timezone))
    return f"{local:%Y-%m-%d %H:%M:%S} {local:%Z}"


def _links(group: Group, error: ErrorSeen | None, settings: Settings, texts: Texts) -> Sequence[tuple[str, str]]:
    page = messages.group_url(group.number, settings)
    trace = messages.trace_url(error.trace_id, settings) if error and error.trace_id else None
    named = [(texts("mail.open", number=group.number), page), (texts("alert.trace"), trace)]
    return [(name, url) for name, url in named if url]


def _frames(error: ErrorSeen | None) -> list[_Frame]:
    """The stack, outermost first; what is stored may be of any shape."""
    return [
        _Frame(
            place=_line(f"{_INSTALLED.sub('', str(frame.get('file', '?')))}:{frame.get('line', '?')}", 160)
            + (f" {_line(str(function), 80)}" if (function := frame.get("function")) else ""),
            code=_line(str(frame.get("text") or ""), 160),
            is_own=bool(frame.get("in_app")),
        )
        for frame in (frames_of(error.context, error.stack) if error else [])
    ]
