"""What is stored, in the shape in which it is shown outside: the API's answers, and the command line's ``--json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from tocsin.lifecycle import Status
from tocsin.spans import text_of
from tocsin.store import audit, beats, groups, jobs, queries
from tocsin.store.alerts import ListedAlert
from tocsin.store.leases import database_now

Shape = dict[str, Any]

_INWARD = {"mark", "marked_at", "rows_pending"}


def error_list(rows: Sequence[queries.Row], following: str | None) -> Shape:
    """A page of errors."""
    return {"success": True, "count": len(rows), "errors": list(rows), "next": following}


def group_list(found: Sequence[groups.Group], following: str | None) -> Shape:
    """A page of groups."""
    return {"success": True, "count": len(found), "groups": [group_row(group) for group in found], "next": following}


def group_row(group: groups.Group) -> Shape:
    """A group: all but what tocsin keeps for itself."""
    return {one.name: getattr(group, one.name) for one in dataclasses.fields(group) if one.name not in _INWARD}


def whole_group(connection: Connection, number: int, now: datetime) -> Shape:
    """A group with its newest errors, its last 24 hours, and what people did to it; raises `NotFound`."""
    group = groups.by_number(connection, number)
    hours = queries.group_hours(connection, [group.id], 24, now)[group.id]
    return {
        "success": True,
        "group": group_row(group),
        "errors": queries.group_errors(connection, group.id),
        "hours": [{"hour": hour, "count": count} for hour, count in hours],
        "history": [history_row(entry) for entry in audit.of_target(connection, f"#{number}")],
    }


def history_row(entry: audit.Entry) -> Shape:
    """One turning point of a group."""
    return {name: getattr(entry, name) for name in ("at", "actor", "via", "action", "detail", "allowed")}


def acted(outcome: groups.Acted) -> Shape:
    """What became of an act on a group."""
    return {"success": True, "message": outcome_text(outcome), "group": group_row(outcome.group)}


def outcome_text(outcome: groups.Acted) -> str:
    """The same in words: ``#42 is muted until 2026-01-31 09:00 UTC``."""
    group = outcome.group
    until = ""
    if group.status is Status.MUTED and group.muted_until:
        until = f" until {group.muted_until:%Y-%m-%d %H:%M} UTC"
    if not outcome.changed:
        return f"#{group.number} was {group.status} before{until}"
    return f"#{group.number} is {group.status}{until}"


def stats(found: queries.Stats, hours: int) -> Shape:
    """Statistics of the last hours."""
    return {
        "success": True,
        "period": f"{hours} hour" if hours == 1 else f"{hours} hours",
        "stats": {
            "total": found.total,
            "by_severity": found.by_severity,
            "by_category": found.by_category,
            "by_service": found.by_service,
            "by_hour": [{"hour": hour, "count": sum(counts.values())} for hour, counts in found.by_hour],
            "unresolved": found.unresolved,
        },
    }


def alert_list(found: Sequence[ListedAlert], following: str | None) -> Shape:
    """A page of alerts with their deliveries."""
    shown = [
        dataclasses.asdict(one.alert)
        | {"group": one.number, "deliveries": [dataclasses.asdict(delivery) for delivery in one.deliveries]}
        for one in found
    ]
    return {"success": True, "count": len(shown), "alerts": shown, "next": following}


def job_list(found: Sequence[jobs.KeptJob], following: str | None) -> Shape:
    """A page of failed jobs."""
    return {"success": True, "count": len(found), "jobs": [job_row(job) for job in found], "next": following}


def job_row(job: jobs.KeptJob) -> Shape:
    """A failed job; ``group`` is the number of its error's group."""
    return {one.name: getattr(job, one.name) for one in dataclasses.fields(job)}


def whole_job(connection: Connection, number: int) -> Shape:
    """A job with what people did to it; raises `NotFound`."""
    history = audit.of_target(connection, jobs.target(number))
    return {
        "success": True,
        "job": job_row(jobs.by_number(connection, number)),
        "history": [history_row(entry) for entry in history],
    }


def acted_on_job(outcome: jobs.Acted) -> Shape:
    """What became of an act on a job."""
    word = "is" if outcome.changed else "was"
    before = "" if outcome.changed else " before"
    message = f"{jobs.target(outcome.job.number)} {word} {outcome.job.status}{before}"
    return {"success": True, "message": message, "job": job_row(outcome.job)}


def beat_list(connection: Connection, environment: str | None = None) -> Shape:
    """All beats of cron jobs, with how each stands now."""
    now = database_now(connection)
    rows = [beat_row(beat, now) for beat in beats.list_beats(connection, environment)]
    return {"success": True, "count": len(rows), "beats": rows}


def beat_row(beat: beats.KeptBeat, now: datetime) -> Shape:
    """A beat; ``group`` is the number of the group that tells of it, None while all is well."""
    shown = {name: getattr(beat, name) for name in ("name", "environment", "service")}
    shown |= {"state": str(beat.state(now)), "every": text_of(beat.every_s), "grace": text_of(beat.grace_s)}
    return shown | {
        name: getattr(beat, name)
        for name in ("last_at", "last_ok_at", "due_at", "took_s", "message", "group", "created_at")
    }


def forgotten(beat: beats.KeptBeat) -> Shape:
    """What became of a beat that was to be forgotten."""
    return {"success": True, "message": f"{beat.name} in {beat.environment} is forgotten"}


def as_json(shape: Mapping[str, Any], *, indent: int | None = None) -> str:
    """The text of a shape; times in ISO 8601, UTC. Lone surrogates, if any, are for the encoder to escape."""
    separators = (",", ":") if indent is None else None
    return json.dumps(shape, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators, default=_plain)


def iso(moment: datetime) -> str:
    """A time as it is shown outside."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
