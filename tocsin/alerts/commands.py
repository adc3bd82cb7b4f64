"""
What people may say to the bot, and what it does then.

`parse` and `press` are pure and strict: what they do not know becomes a helpful line, never a guess.
`run` does what was asked, by way of the same functions as the API and the command line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from tocsin.alerts import messages
from tocsin.alerts.catalogue import Texts
from tocsin.alerts.channels import Message
from tocsin.beats import State
from tocsin.failures import NotFound
from tocsin.lifecycle import IllegalTransition, JobTrigger, Status, Trigger
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.spans import span_of
from tocsin.store import alerts, beats, dependencies, groups, jobs, queries, silence
from tocsin.text import clean, one_line

TRIGGERS = {
    "resolve": Trigger.RESOLVE,
    "reopen": Trigger.REOPEN,
    "ack": Trigger.ACKNOWLEDGE,
    "mute": Trigger.MUTE,
    "ignore": Trigger.IGNORE,
}
"""Commands that change a group."""

JOB_TRIGGERS = {"done": JobTrigger.DONE, "discard": JobTrigger.DISCARD, "retry": JobTrigger.RETRY}
"""Words behind ``/jobs`` that are meant for a failed job."""

LISTED = (
    "status",
    "errors",
    "error",
    "stats",
    "instances",
    "memory",
    "resolve",
    "reopen",
    "ack",
    "mute",
    "ignore",
    "jobs",
    "help",
)
"""Commands in the order in which Telegram offers them."""

GROUPS_AT_ONCE = 100
MUTE_DEFAULT = timedelta(hours=1)

_ALIASES = {"acknowledge": "ack", "details": "error", "show": "error"}
_COMMAND = re.compile(r"/([a-z]{1,20})(?:_([0-9]{1,9}))?(?:@([A-Za-z0-9_]{1,64}))?", re.ASCII)
_NUMBER = re.compile(r"#?([0-9]{1,9})", re.ASCII)
_RANGE = re.compile(r"#?([0-9]{1,9})-#?([0-9]{1,9})", re.ASCII)
_BUTTON = re.compile(r"(res|ack|mut|reo|det):([0-9]{1,9})", re.ASCII)
_BUTTONS = {"res": "resolve", "ack": "ack", "mut": "mute", "reo": "reopen", "det": "error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that was understood."""

    name: str
    numbers: tuple[int, ...] = ()
    span: timedelta | None = None
    severity: Severity | None = None
    hours: int = 24
    job_trigger: JobTrigger | None = None

    @property
    def acts(self) -> bool:
        """Whether it changes something."""
        return self.name in TRIGGERS or self.job_trigger is not None


@dataclass(frozen=True, slots=True)
class Misunderstood:
    """A command that was not understood: the catalogue's key for what to say, and its values."""

    key: str
    values: dict[str, object]


def parse(text: str, *, bot: str | None = None, answered: Sequence[int] = ()) -> Command | Misunderstood | None:
    """
    Read a message.

    Args:
        bot: the bot's own name; a command for another one is not for us.
        answered: numbers of the groups that the message answers to, which stand in for missing ones.

    Returns:
        None for what is no command, or not for this bot.
    """
    words = text[:2000].split()
    if not words or not words[0].startswith("/"):
        return None
    match = _COMMAND.fullmatch(words[0].lower())
    if match is None:
        return Misunderstood("bot.not_understood", {"text": _echo(words[0])})
    name, joined, addressee = match.groups()
    if addressee is not None and bot is not None and addressee != bot.lower():
        return None
    name = _ALIASES.get(name, name)
    rest = ([joined] if joined else []) + words[1:]
    if name in ("start", "help", "status", "instances", "memory"):
        return Command(name=name)
    if name == "errors":
        return _errors(rest)
    if name == "stats":
        return _stats(rest)
    if name in ("jobs", "job"):
        return _jobs(rest)
    if name == "error" or name in TRIGGERS:
        return _on_groups(name, rest, answered)
    return Misunderstood("bot.not_understood", {"text": _echo(words[0])})


def press(data: str) -> Command | None:
    """Read what a button sends; None for what no button of ours sends."""
    match = _BUTTON.fullmatch(data)
    return Command(name=_BUTTONS[match[1]], numbers=(int(match[2]),)) if match else None


def _errors(words: Sequence[str]) -> Command | Misunderstood:
    if not words:
        return Command(name="errors")
    word = words[0].lower()
    if len(words) > 1 or word not in list(Severity):
        return Misunderstood("bot.bad_severity", {"text": _echo(" ".join(words))})
    return Command(name="errors", severity=Severity(word))


def _stats(words: Sequence[str]) -> Command | Misunderstood:
    if not words:
        return Command(name="stats")
    match = _NUMBER.fullmatch(words[0].lower().removesuffix("h"))
    if len(words) > 1 or match is None or not 1 <= int(match[1]) <= 720:
        return Misunderstood("bot.bad_hours", {"text": _echo(" ".join(words))})
    return Command(name="stats", hours=int(match[1]))


def _jobs(words: Sequence[str]) -> Command | Misunderstood:
    if not words:
        return Command(name="jobs")
    act = JOB_TRIGGERS.get(words[0].lower())
    found = [_NUMBER.fullmatch(word) for part in words[act is not None :] for word in part.split(",") if word]
    if not found or None in found or (act is None and len(found) > 1):
        return Misunderstood("bot.bad_job", {"text": _echo(" ".join(words))})
    if len(found) > GROUPS_AT_ONCE:
        return Misunderstood("bot.too_many_jobs", {"limit": GROUPS_AT_ONCE})
    numbers = tuple(dict.fromkeys(int(match[1]) for match in found if match))
    return Command(name="jobs", numbers=numbers, job_trigger=act)


def _on_groups(name: str, words: Sequence[str], answered: Sequence[int]) -> Command | Misunderstood:
    words = [word for part in words for word in part.split(",") if word]
    span = None
    if name == "mute" and words and not _NUMBER.fullmatch(words[-1]) and not _RANGE.fullmatch(words[-1]):
        word = words.pop()
        span = span_of(word)
        if span is None:
            return Misunderstood("bot.bad_duration", {"text": _echo(word)})
    found: list[int] = []
    for word in words:
        if match := _NUMBER.fullmatch(word):
            found.append(int(match[1]))
        elif match := _RANGE.fullmatch(word):
            first, last = int(match[1]), int(match[2])
            if last < first:
                return Misunderstood("bot.bad_number", {"text": _echo(word), "command": name})
            if last - first >= GROUPS_AT_ONCE:
                return Misunderstood("bot.too_many", {"limit": GROUPS_AT_ONCE})
            found += range(first, last + 1)
        else:
            return Misunderstood("bot.bad_number", {"text": _echo(word), "command": name})
    found = list(dict.fromkeys(found or answered))
    if not found:
        return Misunderstood("bot.needs_number", {"command": name})
    if len(found) > GROUPS_AT_ONCE or (name == "error" and len(found) > 1):
        return Misunderstood("bot.too_many", {"limit": 1 if name == "error" else GROUPS_AT_ONCE})
    return Command(name=name, numbers=tuple(found), span=span)


def _echo(text: str) -> str:
    return one_line(clean(text, 80), 80)


def explain(problem: Misunderstood, settings: Settings) -> Message:
    """The helpful line for what was not understood."""
    return messages.say(Texts(settings.language)(problem.key, **problem.values))


def run(
    connection: Connection, command: Command, settings: Settings, *, by: str, via: str, leader: str, now: datetime
) -> Message:
    """
    Do what was asked, and say what came of it.

    Args:
        by: who asks, for the audit; whether they may was asked before.
        leader: ``me`` or ``other``.
    """
    if command.job_trigger is not None:
        said = [_act_on_job(connection, number, command, settings, by=by, via=via) for number in command.numbers]
        return messages.say("\n".join(said))
    if command.acts:
        lines = [_act(connection, number, command, settings, by=by, via=via, now=now) for number in command.numbers]
        return messages.say("\n".join(lines))
    return _ANSWERS[command.name](connection, command, settings, leader, now)


def _act(
    connection: Connection, number: int, command: Command, settings: Settings, *, by: str, via: str, now: datetime
) -> str:
    texts = Texts(settings.language)
    trigger = TRIGGERS[command.name]
    until = now + (command.span or MUTE_DEFAULT) if trigger == Trigger.MUTE else None
    try:
        acted = groups.act(connection, number, trigger, by=by, via=via, until=until)
    except NotFound:
        return texts("bot.no_group", number=number)
    except IllegalTransition as problem:
        status = texts(f"status.{problem.status}")
        return texts("bot.illegal", number=number, status=status, wanted=command.name)
    status = texts(f"status.{acted.group.status}")
    if not acted.changed:
        return texts("bot.was_so", number=number, status=status)
    if acted.group.muted_until:
        return texts(
            "bot.done_until", number=number, status=status, when=messages.when(acted.group.muted_until, settings, now)
        )
    return texts("bot.done", number=number, status=status)


def _act_on_job(connection: Connection, number: int, command: Command, settings: Settings, *, by: str, via: str) -> str:
    texts = Texts(settings.language)
    trigger = command.job_trigger
    assert trigger is not None
    try:
        if trigger is JobTrigger.RETRY:  # whoever could write a row would run code here; and the code is elsewhere
            job = jobs.by_number(connection, number)
            return texts("bot.job.retry", number=number, folder=_echo(job.folder or job.service))
        acted = jobs.act(connection, number, trigger, by=by, via=via)
    except NotFound:
        return texts("bot.no_job", number=number)
    except IllegalTransition as problem:
        return texts("bot.job.illegal", number=number, status=texts(f"job.{problem.status}"), wanted=trigger)
    status = texts(f"job.{acted.job.status}")
    return texts("bot.job.done" if acted.changed else "bot.job.was_so", number=number, status=status)


Answer = Callable[[Connection, Command, Settings, str, datetime], Message]


def _help(connection: Connection, command: Command, settings: Settings, leader: str, now: datetime) -> Message:
    return messages.say(Texts(settings.language)("bot.help"))


def _status(connection: Connection, command: Command, settings: Settings, leader: str, now: datetime) -> Message:
    needed = dependencies.current(connection, now, timedelta(seconds=settings.silent_after_s))
    away = [one for one in needed if one.is_away]
    silent = silence.silent_now(connection)
    unwell = [beat for beat in beats.overdue(connection, now) if beat.state(now) != State.OK]
    known = alerts.overview(connection, now)
    return messages.status(known, away, silent, unwell, leader=leader, settings=settings, now=now)


def _instances(connection: Connection, command: Command, settings: Settings, leader: str, now: datetime) -> Message:
    alive = [row for row in queries.list_instances(connection) if row["ended_at"] is None]
    return messages.instance_list(silence.silent_now(connection), alive, settings, now)


def _memory(connection: Connection, command: Command, settings: Settings, leader: str, now: datetime) -> Message:
    return messages.memory([row for row in queries.list_instances(connection) if row["ended_at"] is None], settings)


def _list(connection: Connection, command: Command, settings: Settings, leader: str, now: datetime) -> Message:
    found, more = groups.list_groups(connection, status=Status.OPEN, severity=command.severity, limit=15)
    return messages.group_list(found, more is not None, settings)


def _show(connection: Connection, command: Command, settings: Settings, leader: str, now: datetime) -> Message:
    try:
        group = groups.by_number(connection, command.numbers[0])
    except NotFound:
        return messages.say(Texts(settings.language)("bot.no_group", number=command.numbers[0]))
    return messages.details(
        group, alerts.last_error(connection, group), alerts.last_act(connection, group), settings, now
    )


def _count(connection: Connection, command: Command, settings: Settings, leader: str, now: datetime) -> Message:
    texts = Texts(settings.language)
    counts = alerts.totals(connection, now - timedelta(hours=command.hours))
    lines = [texts("bot.stats.head", hours=command.hours, total=f"{sum(counts.values()):,}")]
    lines += [
        f"{messages.MARKS[severity]} {texts(f'severity.{severity}')} {counts[severity]:,}"
        for severity in reversed(Severity)
        if severity in counts
    ]
    return messages.say("\n".join(lines))


def _list_jobs(connection: Connection, command: Command, settings: Settings, leader: str, now: datetime) -> Message:
    if command.numbers:
        try:
            return messages.job(jobs.by_number(connection, command.numbers[0]), settings, now)
        except NotFound:
            return messages.say(Texts(settings.language)("bot.no_job", number=command.numbers[0]))
    found, more = jobs.list_jobs(connection, limit=15)
    return messages.job_list(found, more is not None, settings, now)


_ANSWERS: dict[str, Answer] = {
    "help": _help,
    "status": _status,
    "instances": _instances,
    "memory": _memory,
    "errors": _list,
    "error": _show,
    "stats": _count,
    "jobs": _list_jobs,
}
