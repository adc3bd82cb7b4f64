"""
Messages that a phone can act on, rendered from how things stand. Pure.

A message is built from pieces with a budget each, cut while they are raw and escaped afterwards; so no
text from outside can break the markup, and none makes the message longer than Telegram takes.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tocsin.alerts.catalogue import Texts
from tocsin.alerts.channels import Button, Message
from tocsin.alerts.rules import Reason, is_silent, likely_cause_first
from tocsin.beats import State
from tocsin.exporter.shown import frames_of, message_of
from tocsin.lifecycle import JobStatus, Status
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store.alerts import ErrorSeen, Overview, Subject
from tocsin.store.audit import BY_ITSELF, Entry
from tocsin.store.beats import KeptBeat
from tocsin.store.dependencies import Standing
from tocsin.store.groups import Group
from tocsin.store.jobs import WAITING, KeptJob
from tocsin.store.silence import Quiet
from tocsin.text import clean, one_line

LIMIT = 4096
"""UTF-16 units that a message may have, Telegram's count; here with the markup."""

GROUP_PAGE = "/admin/debug/groups/"

MARKS = {Severity.CRITICAL: "🔴", Severity.HIGH: "🟠", Severity.MEDIUM: "🟡", Severity.LOW: "⚪"}
_STATUS_MARKS = {
    Status.OPEN: "🔔",
    Status.ACKNOWLEDGED: "👀",
    Status.RESOLVED: "✅",
    Status.MUTED: "🔇",
    Status.IGNORED: "🚫",
}
_JOB_MARKS = {JobStatus.FAILED: "🔔", JobStatus.RUNNING: "⏳", JobStatus.DONE: "✅", JobStatus.DISCARDED: "🚫"}
_SHOWN_LINES = 8
_SHOWN_INSTANCES = 15
_MUCH_BYTES = 2**20


def units(text: str) -> int:
    """UTF-16 units, in which Telegram counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def fit(text: str, budget: int) -> str:
    """As much of the cleaned text as has at most `budget` UTF-16 units once it is escaped."""
    text = clean(text, max(budget, 64))
    used = kept = 0
    for place, character in enumerate(text):
        used += units(html.escape(character))
        if used > budget:
            return text[:kept] + "…" if budget > 0 else ""
        if used < budget:
            kept = place + 1
    return text


@dataclass(slots=True)
class Page:
    """A message under construction: the same lines as Telegram's HTML and as plain text."""

    _html: list[str] = field(default_factory=list)
    _plain: list[str] = field(default_factory=list)

    def line(self, *pieces: Piece | str) -> None:
        """Add a line; a `str` is a text of ours and is escaped all the same."""
        whole = [Piece(piece) if isinstance(piece, str) else piece for piece in pieces]
        self._html.append("".join(piece.html for piece in whole))
        self._plain.append("".join(piece.text for piece in whole))

    @property
    def html(self) -> str:
        return "\n".join(self._html)

    @property
    def plain(self) -> str:
        return "\n".join(self._plain)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text with one markup."""

    plain: str
    tag: str = ""

    @property
    def text(self) -> str:
        """As plain text shows it."""
        return self.plain

    @property
    def html(self) -> str:
        text = html.escape(self.plain)
        return f"<{self.tag}>{text}</{self.tag}>" if self.tag else text


@dataclass(frozen=True, slots=True)
class Link(Piece):
    """A link; its address is ours, what is foreign in it is quoted."""

    url: str = ""

    @property
    def text(self) -> str:
        return f"{self.plain}: {self.url}"

    @property
    def html(self) -> str:
        return f'<a href="{html.escape(self.url)}">{html.escape(self.plain)}</a>'


def code(text: str, budget: int) -> Piece:
    """Foreign text on one line, in a form in which no name, link or command in it comes alive."""
    return Piece(fit(one_line(clean(text, budget * 2), budget * 2), budget) or "-", "code")


def render(subject: Subject, settings: Settings, now: datetime) -> Message:
    """An alert's message as things stand now."""
    texts = Texts(settings.language)
    if subject.alert.reason == Reason.TEST or not subject.groups:
        page = Page()
        page.line("🔔 ", texts("alert.test"))
        return Message(html=page.html, plain=page.plain, is_silent=True, subject=subject)
    if subject.alert.reason == Reason.FOLD:
        return _fold(subject, texts)
    return _single(subject, settings, texts, now)


def _single(subject: Subject, settings: Settings, texts: Texts, now: datetime) -> Message:
    group = subject.groups[0]
    page = Page()
    mark = MARKS[group.severity] if group.status == Status.OPEN else _STATUS_MARKS[group.status]
    page.line(
        f"{mark} ",
        Piece(f"{texts(f'severity.{group.severity}')} #{group.number}", "b"),
        f" {texts(f'reason.{subject.alert.reason}')}",
    )
    if subject.may_repeat:
        page.line(texts("alert.may_repeat"))
    describe(page, group, subject.error, settings=settings, now=now)
    news = status_line(group, subject.act, settings, texts, now)
    if subject.act is not None and subject.act.actor == BY_ITSELF and subject.act.detail:
        page.line()
        page.line(code(subject.act.detail, 300))
    if news:
        page.line()
        page.line(news)
    return Message(
        html=page.html,
        plain=page.plain,
        news=f"#{group.number} {news.plain}" if news and group.status != Status.OPEN else None,
        buttons=buttons(group, texts),
        is_silent=is_silent(subject.alert.severity, [group.status]),
        subject=subject,
    )


def describe(page: Page, group: Group, error: ErrorSeen | None, *, settings: Settings, now: datetime) -> None:
    """Add what a group is: type, message, place, service, counts, links."""
    texts = Texts(settings.language)
    kind = (error and error.exception_type) or group.exception_type
    message = message_of(error.message) if error else group.title
    if kind:
        page.line(code(kind, 200))
    page.line(Piece(fit(message, 1400) or "-", "pre"))
    place = code(group.culprit, 240) if group.culprit else None
    where = own_frame(error)
    if place and where:
        page.line("▸ ", place, " ", code(where, 240))
    elif place or where:
        page.line("▸ ", place or code(where or "", 240))
    release = (error and error.release) or group.last_release
    about: list[Piece | str] = [
        f"{texts('alert.service')} ",
        code(group.service, 100),
        f" · {texts('alert.environment')} ",
        code(group.environment, 60),
    ]
    if release:
        about += [f" · {texts('alert.release')} ", code(release, 80)]
    page.line(*about)
    page.line(
        f"{texts('alert.count')} {group.count:,} · {texts('alert.first')} {when(group.first_seen, settings, now)}"
        f" · {texts('alert.last')} {when(group.last_seen, settings, now)}"
    )
    links: list[Piece | str] = []
    if url := group_url(group.number, settings):
        links.append(Link(texts("alert.link"), url=url))
    if error and error.trace_id and (url := trace_url(error.trace_id, settings)):
        links += [" · "] if links else []
        links.append(Link(texts("alert.trace"), url=url))
    if links:
        page.line(*links)


def own_frame(error: ErrorSeen | None) -> str | None:
    """Where the team's own innermost frame is: ``shop/orders.py:42``."""
    for frame in reversed(frames_of(error.context, error.stack) if error else []):
        if frame.get("in_app"):
            return f"{frame.get('file', '?')}:{frame.get('line', '?')}"
    return None


def status_line(group: Group, act: Entry | None, settings: Settings, texts: Texts, now: datetime) -> Piece | None:
    """How the group stands, who brought it there and by which way; None for one that simply is open."""
    mark = _STATUS_MARKS[group.status]
    if act is None:
        return None if group.status == Status.OPEN else Piece(f"{mark} {texts(f'status.{group.status}')}")
    values = {"who": fit(one_line(act.actor), 120), "via": act.via, "when": when(act.at, settings, now)}
    if group.status == Status.OPEN:
        return Piece(f"{mark} {texts('alert.reopened', **values)}")
    status = texts(f"status.{group.status}")
    if group.status == Status.MUTED and group.muted_until:
        status += " " + texts("alert.muted_until", when=when(group.muted_until, settings, now))
    return Piece(f"{mark} {texts('alert.by', status=status, **values)}")


def _fold(subject: Subject, texts: Texts) -> Message:
    groups = likely_cause_first(subject.groups)
    page = Page()
    page.line(f"{MARKS[subject.alert.severity]} ", Piece(texts("fold.head", count=len(groups)), "b"))
    if subject.may_repeat:
        page.line(texts("alert.may_repeat"))
    for group in groups[:_SHOWN_LINES]:
        page.line(*brief(group, texts))
    everyone = texts("fold.all", numbers=numbers(group.number for group in groups))
    if len(groups) > 1:
        page.line(everyone)
    done = [group.number for group in groups if group.status not in (Status.OPEN, Status.ACKNOWLEDGED)]
    solved = texts("fold.solved", count=len(done)) if done else None
    if solved:
        page.line(solved)
    # Who joins is said where the message itself cannot change.
    news = [texts("fold.head", count=len(groups)), everyone, solved]
    return Message(
        html=page.html,
        plain=page.plain,
        news=" · ".join(str(part) for part in news if part),
        is_silent=is_silent(subject.alert.severity, [group.status for group in groups]),
        subject=subject,
    )


def brief(group: Group, texts: Texts) -> list[Piece | str]:
    """A group on one line of a list."""
    mark = MARKS[group.severity] if group.status == Status.OPEN else _STATUS_MARKS[group.status]
    return [f"{mark} #{group.number} ×{group.count:,} ", code(group.title, 80), " ", code(group.service, 24)]


def numbers(found: Iterable[int]) -> str:
    """Numbers as people write them; runs as ranges once they are too many to be spelled out."""
    ordered = sorted(set(found))
    spelled = ", ".join(f"#{number}" for number in ordered)
    if len(spelled) <= 400:
        return spelled
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"#{first}" if first == last else f"#{first}-{last}" for first, last in runs)


def buttons(group: Group, texts: Texts) -> Sequence[Sequence[Button]]:
    """What can be done with a group just now."""

    def button(key: str, data: str) -> Button:
        return Button(texts(f"button.{key}"), f"{data}:{group.number}")

    if group.status == Status.OPEN:
        return [
            [button("resolve", "res"), button("acknowledge", "ack")],
            [button("mute", "mut"), button("details", "det")],
        ]
    if group.status == Status.ACKNOWLEDGED:
        return [[button("resolve", "res"), button("mute", "mut")], [button("details", "det")]]
    return [[button("reopen", "reo"), button("details", "det")]]


def group_url(number: int, settings: Settings) -> str | None:
    """The page of a group, when the team has said where its pages are."""
    return _short(f"{settings.public_url}{GROUP_PAGE}{number}") if settings.public_url else None


def trace_url(trace_id: str, settings: Settings) -> str | None:
    """A trace in the team's own tool; never by `format`, the address may hold other braces."""
    if not re.fullmatch("[0-9a-fA-F]{16,32}", trace_id):
        return None
    if not settings.trace_url or not settings.trace_url.startswith(("https://", "http://")):
        return None
    return _short(settings.trace_url.replace("{trace_id}", trace_id))


def _short(url: str) -> str | None:
    """An address cannot be cut; one that is too long is left out."""
    return url if units(html.escape(url)) <= 500 else None


def when(moment: datetime, settings: Settings, now: datetime) -> str:
    """A moment in the team's time zone, as short as it can be understood."""
    zone = ZoneInfo(settings.timezone)
    local, today = moment.astimezone(zone), now.astimezone(zone)
    return f"{local:%H:%M:%S}" if local.date() == today.date() else f"{local:%Y-%m-%d %H:%M}"


def age(span: timedelta) -> str:
    """How long, as a person says it."""
    seconds = max(int(span.total_seconds()), 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


# Answers of the bot.


def details(group: Group, error: ErrorSeen | None, act: Entry | None, settings: Settings, now: datetime) -> Message:
    """One group, as ``/error 42`` shows it."""
    texts = Texts(settings.language)
    page = Page()
    page.line(
        f"{MARKS[group.severity]} ",
        Piece(f"{texts(f'severity.{group.severity}')} #{group.number}", "b"),
        f" {texts(f'status.{group.status}')}",
    )
    describe(page, group, error, settings=settings, now=now)
    if frames := stack(error):
        page.line(Piece(fit(frames, 1200), "pre"))
    news = status_line(group, act, settings, texts, now)
    if news:
        page.line(news)
    return Message(html=page.html, plain=page.plain, buttons=buttons(group, texts))


def stack(error: ErrorSeen | None) -> str:
    """The last frames, one a line, outermost first; empty without any."""
    frames = frames_of(error.context, error.stack) if error else []
    return "\n".join(
        one_line(
            f"{'▸' if frame.get('in_app') else ' '} {frame.get('module', '?')}:{frame.get('line', '?')} "
            f"{frame.get('text', '')}",
            140,
        )
        for frame in frames[-8:]
    )


def group_list(groups: Sequence[Group], more: bool, settings: Settings) -> Message:
    """Open groups, as ``/errors`` shows them."""
    texts = Texts(settings.language)
    page = Page()
    page.line(texts("bot.errors.head") if groups else texts("bot.errors.none"))
    for group in groups:
        page.line(*brief(group, texts))
    if more:
        page.line(texts("bot.errors.more"))
    return Message(html=page.html, plain=page.plain)


def job_list(found: Sequence[KeptJob], more: bool, settings: Settings, now: datetime) -> Message:
    """Failed jobs that wait for a person, as ``/jobs`` shows them."""
    texts = Texts(settings.language)
    page = Page()
    page.line(texts("bot.jobs.head") if found else texts("bot.jobs.none"))
    for one in found:
        mark = _JOB_MARKS[one.status]
        page.line(f"{mark} {one.number} ", code(one.function, 60), f" {age(now - one.failed_at)} ", code(_why(one), 60))
    if more:
        page.line(texts("bot.jobs.more"))
    if found:
        page.line(texts("bot.jobs.how", number=found[0].number))
    return Message(html=page.html, plain=page.plain)


def job(one: KeptJob, settings: Settings, now: datetime) -> Message:
    """One failed job, as ``/jobs 7`` shows it."""
    texts = Texts(settings.language)
    page = Page()
    head = texts("bot.job.head", number=one.number, status=texts(f"job.{one.status}"))
    page.line(f"{_JOB_MARKS[one.status]} ", Piece(head, "b"))
    page.line(code(one.function, 200))
    page.line(Piece(fit(_why(one), 600), "pre"))
    page.line(Piece(fit(json.dumps(one.arguments, ensure_ascii=False), 800), "pre"))
    failed = texts("bot.job.failed", when=when(one.failed_at, settings, now), tries=one.tries)
    page.line(failed, " · ", code(one.service, 100), " · ", code(one.environment, 60))
    if one.outcome:
        page.line(texts("bot.job.outcome"), " ", code(one.outcome, 200))
    if one.group is not None:
        page.line(f"#{one.group}")
    if one.status in WAITING:
        page.line(texts("bot.job.retry", number=one.number, folder=fit(one_line(one.folder or one.service), 200)))
    return Message(html=page.html, plain=page.plain)


def _why(one: KeptJob) -> str:
    return ": ".join(filter(None, (one.exception_type, one.message))) or "-"


def status(
    overview: Overview,
    away: Sequence[Standing] = (),
    silent: Sequence[Quiet] = (),
    unwell: Sequence[KeptBeat] = (),
    *,
    leader: str,
    settings: Settings,
    now: datetime,
) -> Message:
    """How things stand, as ``/status`` shows it."""
    texts = Texts(settings.language)
    page = Page()
    page.line(texts("bot.status.open", count=sum(overview.open_groups.values())))
    for severity in reversed(Severity):
        if count := overview.open_groups.get(severity):
            page.line(f"  {MARKS[severity]} {texts(f'severity.{severity}')} {count}")
    page.line(texts("bot.status.hour", count=f"{overview.errors_last_hour:,}"))
    page.line(texts("bot.status.instances", count=overview.instances))
    for quiet in silent[:_SHOWN_LINES]:
        page.line("  ", *_silent(quiet, settings, texts, now))
    page.line(texts("bot.status.database", state=texts("bot.status.database.ok")))
    for one in away[:_SHOWN_LINES]:
        page.line(code(one.name, 60), f": {texts('bot.status.away', when=when(one.since, settings, now))}")
    for beat in unwell[:_SHOWN_LINES]:
        since = beat.due_at if (state := beat.state(now)) == State.MISSING else beat.last_at
        page.line(code(beat.name, 60), f": {texts(f'bot.status.beat.{state}', when=when(since, settings, now))}")
    if overview.oldest_pending_at:
        page.line(texts("bot.status.pending", age=age(now - overview.oldest_pending_at)))
    else:
        page.line(texts("bot.status.nothing_pending"))
    page.line(texts("bot.status.leader", who=texts(f"bot.status.leader.{leader}")))
    return Message(html=page.html, plain=page.plain)


def instance_list(
    silent: Sequence[Quiet], alive: Sequence[Mapping[str, Any]], settings: Settings, now: datetime
) -> Message:
    """The processes and how they are, as ``/instances`` shows them."""
    texts = Texts(settings.language)
    page = Page()
    known = {one.id for one in silent}
    rest = [one for one in alive if one["id"] not in known]
    page.line(texts("bot.instances.head") if silent or rest else texts("bot.instances.none"))
    for quiet in silent[:_SHOWN_INSTANCES]:
        page.line(*_silent(quiet, settings, texts, now))
    for one in rest[:_SHOWN_INSTANCES]:
        page.line(code(one["service"], 80), " ", code(f"{one['host']}/{one['pid']}", 80), f" {_figures(one, texts)}")
    left = max(len(silent) - _SHOWN_INSTANCES, 0) + max(len(rest) - _SHOWN_INSTANCES, 0)
    if left:
        page.line(texts("bot.memory.more", count=left))
    return Message(html=page.html, plain=page.plain)


def _silent(one: Quiet, settings: Settings, texts: Texts, now: datetime) -> tuple[Piece | str, ...]:
    said = texts("bot.status.silent", when=when(one.last_seen, settings, now))
    return code(one.service, 80), " ", code(f"{one.host}/{one.pid}", 80), f" {said}"


def _figures(one: Mapping[str, Any], texts: Texts) -> str:
    """What a process has said of itself: what it did not say is left out, and what is 0."""
    said = [texts("bot.instances.stopping")] if one["is_shutting_down"] else []
    if one["memory_bytes"]:
        said.append(_memory_of(one, texts))
    if one["active_requests"]:
        said.append(texts("bot.instances.requests", count=one["active_requests"]))
    if one["loop_lag_ms"]:
        said.append(texts("bot.instances.loop", ms=one["loop_lag_ms"]))
    if one["spool_bytes"] and one["spool_bytes"] >= _MUCH_BYTES:
        said.append(texts("bot.instances.spool", size=_megabytes(one["spool_bytes"])))
    return " · ".join(said)


def _memory_of(one: Mapping[str, Any], texts: Texts) -> str:
    used, limit = one["memory_bytes"], one["memory_limit_bytes"]
    if not limit:
        return texts("bot.memory.used", used=_megabytes(used))
    return texts("bot.memory.of", used=_megabytes(used), limit=_megabytes(limit), percent=used * 100 // limit)


def memory(instances: Sequence[Mapping[str, Any]], settings: Settings) -> Message:
    """What the living processes take of their memory, the fullest first, as ``/memory`` shows it."""
    texts = Texts(settings.language)
    page = Page()
    known = [one for one in instances if one["memory_bytes"]]
    page.line(texts("bot.memory.head") if known else texts("bot.memory.none"))
    for one in sorted(known, key=_fullness, reverse=True)[:_SHOWN_INSTANCES]:
        trend, said = one["memory_trend"], _memory_of(one, texts)
        if trend is not None:
            said += texts("bot.memory.trend", trend=f"{trend / 2**20:+,.0f}")
        page.line(code(one["service"], 80), " ", code(f"{one['host']}/{one['pid']}", 80), f" {said}")
    if len(known) > _SHOWN_INSTANCES:
        page.line(texts("bot.memory.more", count=len(known) - _SHOWN_INSTANCES))
    return Message(html=page.html, plain=page.plain)


def _fullness(instance: Mapping[str, Any]) -> tuple[float, int]:
    used: int = instance["memory_bytes"]
    return used / instance["memory_limit_bytes"] if instance["memory_limit_bytes"] else 0.0, used


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def say(text: str) -> Message:
    """A text of the catalogue with its values, as a message."""
    page = Page()
    page.line(fit(text, LIMIT - 1))
    return Message(html=page.html, plain=page.plain)
