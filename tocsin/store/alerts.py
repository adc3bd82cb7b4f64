"""
The outbox: what must be said (alerts), to whom (deliveries), and how saying it went.

A delivery is claimed for each attempt with a number that grows (`fence`): who comes back too late with
an old number changes nothing. What was claimed and never finished is due again after `claimed_until`,
and then may be said twice. Times that replicas compare come from the database's clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, Row, Text, and_, func, literal, literal_column, or_, select, union, update
from sqlalchemy.dialects import postgresql, sqlite

from tocsin.ids import uuid7
from tocsin.lifecycle import Status, Trigger
from tocsin.model import Severity
from tocsin.store import audit, cursors
from tocsin.store.adopt import shortened
from tocsin.store.groups import Group, Mark
from tocsin.store.leases import database_now
from tocsin.store.queries import RECENT_AT_MOST, is_error_id
from tocsin.store.schema import (
    alerts,
    channel_states,
    counters,
    deliveries,
    error_groups,
    error_logs,
    hourly_totals,
    instances,
)
from tocsin.text import STACK_LIMIT

LOG_LIMIT = 20
"""Attempts that a delivery remembers."""

_EDIT_ATTEMPT = 3
"""An edit that fails for the first time pauses as a third attempt does."""

_MESSAGE_WINDOW = timedelta(minutes=1)

EDITS_BESIDE = 5
"""Edits of counts that may be made in a minute besides the messages: Telegram allows a group 20 of both."""

_AT_ONCE = timedelta(days=1)
"""How far back an edit is dated that must not wait: it goes before all others, however busy a chat is."""


@dataclass(slots=True, kw_only=True)
class LastAlert:
    """What was said last about a group."""

    id: str
    group_id: str
    reason: str
    severity: Severity
    created_at: datetime
    fold_id: str | None  # the alert whose message names the group, when it was folded

    @property
    def message_id(self) -> str:
        """The alert whose deliveries show this group."""
        return self.fold_id or self.id


@dataclass(slots=True, kw_only=True)
class Fold:
    """One message for many groups."""

    id: str
    severity: Severity
    created_at: datetime
    last_at: datetime
    group_ids: list[str]


@dataclass(slots=True, kw_only=True)
class Alert:
    """A row of ``alerts``."""

    id: str
    created_at: datetime
    reason: str
    group_id: str | None
    severity: Severity
    service: str | None
    environment: str | None
    details: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class ErrorSeen:
    """What a message shows of a group's newest error."""

    message: str
    exception_type: str | None
    release: str | None
    trace_id: str | None
    timestamp: datetime
    context: dict[str, Any]
    stack: str | None = None


@dataclass(slots=True, kw_only=True)
class Subject:
    """All that a message is made of, as it stands now."""

    alert: Alert
    groups: list[Group]  #          one; of a fold all; none for what is about tocsin itself
    error: ErrorSeen | None = None
    act: audit.Entry | None = None
    may_repeat: bool = False


@dataclass(slots=True, kw_only=True)
class Claim:
    """One attempt that this worker may make until `claimed_until`."""

    delivery_id: str
    fence: int
    channel: str
    target: str
    address: str  #                 where it really goes: the target, or where that moved
    attempt: int
    external_id: str | None  #      set: edit that message instead of sending one
    edit_wanted_at: datetime | None
    subject: Subject


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One line of a delivery's log."""

    at: datetime
    outcome: str
    error: str | None


@dataclass(slots=True, kw_only=True)
class Delivery:
    """A row of ``deliveries``, for people to read."""

    id: str
    channel: str
    target: str
    state: str
    attempts: int
    created_at: datetime
    sent_at: datetime | None
    external_id: str | None
    last_error: str | None
    may_repeat: bool
    log: list[Attempt]


@dataclass(slots=True, kw_only=True)
class ListedAlert:
    """An alert with its deliveries and its group's number."""

    alert: Alert
    number: int | None
    deliveries: list[Delivery] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ChannelState:
    """How a target of a channel stands."""

    channel: str
    target: str
    paused_until: datetime | None
    parked_reason: str | None
    moved_to: str | None
    last_ok_at: datetime | None
    last_error_at: datetime | None
    last_error: str | None


@dataclass(slots=True, kw_only=True)
class Overview:
    """The few figures of /status."""

    open_groups: dict[Severity, int]
    errors_last_hour: int
    instances: int
    oldest_pending_at: datetime | None


def _insert(connection: Connection) -> Any:
    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert


# What the leader does.


def marked(connection: Connection, limit: int, *, seen_before: datetime | None = None) -> list[Group]:
    """
    Marked groups, those waiting longest first; on PostgreSQL locked, past rows that another transaction holds.

    Args:
        seen_before: leave out those whose counts alone have grown, and only since then.
    """
    wanted = (
        select(error_groups)
        .where(error_groups.c.marked_at.is_not(None))
        .order_by(error_groups.c.marked_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    if seen_before is not None:
        wanted = wanted.where(or_(error_groups.c.mark != Mark.SEEN, error_groups.c.marked_at <= seen_before))
    return [Group.from_row(row) for row in connection.execute(wanted).mappings()]


def clear_marks(connection: Connection, group_ids: Sequence[str]) -> None:
    """Clear marks that `marked` returned in this transaction: a mark set since waits for its end."""
    if group_ids:
        connection.execute(
            update(error_groups).where(error_groups.c.id.in_(group_ids)).values(mark=None, marked_at=None)
        )


def last_alerts(connection: Connection, group_ids: Sequence[str]) -> dict[str, LastAlert]:
    """The newest alert of each of some groups."""
    if not group_ids:
        return {}
    newest = (
        select(
            alerts,
            func.row_number()
            .over(partition_by=alerts.c.group_id, order_by=(alerts.c.created_at.desc(), alerts.c.id.desc()))
            .label("place"),
        )
        .where(alerts.c.group_id.in_(group_ids))
        .subquery()
    )
    return {
        row.group_id: LastAlert(
            id=row.id,
            group_id=row.group_id,
            reason=row.reason,
            severity=Severity(row.severity),
            created_at=row.created_at,
            fold_id=row.details.get("fold"),
        )
        for row in connection.execute(select(newest).where(newest.c.place == 1))
    }


def count_rung(connection: Connection, since: datetime) -> int:
    """How many groups rang since a moment, each counted, folded or not."""
    return connection.execute(
        select(func.count()).where(alerts.c.created_at > since, alerts.c.group_id.is_not(None))
    ).scalar_one()


def latest_fold(connection: Connection, since: datetime, *, critical: bool) -> Fold | None:
    """The newest fold made since a moment that a critical (or lesser) group may join without being overheard."""
    wanted = select(alerts).where(alerts.c.created_at > since, alerts.c.reason == "fold")
    if critical:
        wanted = wanted.where(alerts.c.severity == Severity.CRITICAL)
    row = connection.execute(wanted.order_by(alerts.c.created_at.desc(), alerts.c.id.desc()).limit(1)).first()
    if row is None:
        return None
    return Fold(
        id=row.id,
        severity=Severity(row.severity),
        created_at=row.created_at,
        last_at=datetime.fromisoformat(row.details["last_at"]),
        group_ids=list(row.details["groups"]),
    )


def add_alert(
    connection: Connection,
    *,
    reason: str,
    severity: Severity,
    now: datetime,
    group: Group | None = None,
    details: dict[str, Any] | None = None,
    dedupe_key: str | None = None,
) -> str | None:
    """Write an alert; its id, or None when one with that key is there already."""
    alert_id = uuid7()
    return connection.execute(
        _insert(connection)(alerts)
        .values(
            id=alert_id,
            created_at=now,
            reason=reason,
            group_id=group.id if group else None,
            severity=severity,
            service=group.service if group else None,
            environment=group.environment if group else None,
            details=details or {},
            dedupe_key=dedupe_key,
        )
        .on_conflict_do_nothing(index_elements=["dedupe_key"])
        .returning(alerts.c.id)
    ).scalar_one_or_none()


def add_deliveries(
    connection: Connection, alert_id: str, targets: Iterable[tuple[str, str]], *, priority: int, now: datetime
) -> None:
    """Write a delivery for each (channel, target) of an alert."""
    rows = [
        {
            "id": uuid7(),
            "alert_id": alert_id,
            "channel": channel,
            "target": target,
            "state": "pending",
            "priority": priority,
            "created_at": now,
            "next_attempt_at": now,
            "log": [],
        }
        for channel, target in targets
    ]
    if rows:
        connection.execute(deliveries.insert(), rows)


def add_fold(connection: Connection, *, severity: Severity, now: datetime) -> Fold:
    """Write an alert for many groups; `add_to_fold` names them."""
    fold = Fold(id=uuid7(), severity=severity, created_at=now, last_at=now, group_ids=[])
    connection.execute(alerts.insert().values(id=fold.id, created_at=now, reason="fold", severity=severity, details={}))
    return fold


def add_to_fold(connection: Connection, fold: Fold, group_ids: Sequence[str], now: datetime) -> None:
    """Let more groups join a fold; its message wants an edit."""
    fold.group_ids += [group_id for group_id in group_ids if group_id not in fold.group_ids]
    fold.last_at = now
    connection.execute(
        update(alerts)
        .where(alerts.c.id == fold.id)
        .values(details={"groups": fold.group_ids, "last_at": now.isoformat()})
    )


def want_edits(
    connection: Connection,
    alert_ids: Iterable[str],
    *,
    channels: Collection[str] | None = None,
    now: datetime,
    every_s: float = 0.0,
) -> None:
    """
    Note that the messages of some alerts no longer say how things stand.

    Args:
        channels: on which of them that matters (default: on all).
        every_s: seconds since the last sending or edit that must have passed; 0 for at once.
    """
    wanted = (
        select(deliveries)
        .where(deliveries.c.alert_id.in_(sorted(set(alert_ids))), deliveries.c.state != "failed")
        .order_by(deliveries.c.id)
    )
    if channels is not None:
        wanted = wanted.where(deliveries.c.channel.in_(sorted(channels)))
    for row in connection.execute(wanted).all():
        last = row.edited_at or row.sent_at
        in_time = max(now, last + timedelta(seconds=every_s)) if last else now
        at = in_time if every_s else now - _AT_ONCE
        is_free = row.edit_wanted_at is None or row.edit_wanted_at == row.claimed_until
        if is_free or at < row.edit_wanted_at:
            connection.execute(update(deliveries).where(deliveries.c.id == row.id).values(edit_wanted_at=at))


# What a worker does.


# Written with literals: SQLite takes a partial index only for its condition, word by word.
_IS_OPEN = deliveries.c.state.in_((literal_column("'pending'"), literal_column("'sending'")))


def due_targets(connection: Connection, channels: Sequence[str]) -> list[tuple[str, str]]:
    """Each (channel, target) of these channels for which something is due, and that is not to be left alone."""
    now = database_now(connection)
    resting = select(channel_states.c.channel, channel_states.c.target).where(channel_states.c.paused_until > now)
    paused = {(row.channel, row.target) for row in connection.execute(resting)}
    due = union(
        *(
            select(deliveries.c.channel, deliveries.c.target).where(condition)
            for condition in (_sending_due(now), _edit_due(now))
        )
    )
    found = [(row.channel, row.target) for row in connection.execute(due) if row.channel in channels]
    return [key for key in found if key not in paused]


def _is_to(channel: str, target: str) -> Any:
    """To that target; in a form for which no index stands, so that the few that are due are searched first."""
    empty = literal_column("''", Text)
    return and_(deliveries.c.channel + empty == channel, deliveries.c.target + empty == target)


def _sending_due(now: datetime) -> Any:
    return and_(
        _IS_OPEN,
        deliveries.c.next_attempt_at <= now,
        or_(deliveries.c.state == "pending", deliveries.c.claimed_until <= now),
    )


def _edit_due(now: datetime) -> Any:
    return and_(
        deliveries.c.edit_wanted_at <= now,
        deliveries.c.state == "sent",
        deliveries.c.external_id.is_not(None),
        or_(deliveries.c.claimed_until.is_(None), deliveries.c.claimed_until <= now),
    )


def _messages_within(connection: Connection, channel: str, target: str, now: datetime) -> int:
    """Messages that went to a target within the last minute, or are on their way."""
    sent = select(func.count()).where(
        deliveries.c.channel == channel,
        deliveries.c.target == target,
        deliveries.c.sent_at > now - _MESSAGE_WINDOW,
    )
    going = select(func.count()).where(
        _is_to(channel, target), _IS_OPEN, deliveries.c.state == "sending", deliveries.c.claimed_until > now
    )
    return connection.execute(sent).scalar_one() + connection.execute(going).scalar_one()


def _edits_within(connection: Connection, channel: str, target: str, now: datetime) -> int:
    """Edits that were made in a chat within the last minute."""
    edited = select(func.count()).where(
        deliveries.c.channel == channel,
        deliveries.c.target == target,
        deliveries.c.edited_at > now - _MESSAGE_WINDOW,
    )
    return connection.execute(edited).scalar_one()


def claim(
    connection: Connection, channel: str, target: str, *, owner: str, claim_s: float, per_minute: int
) -> Claim | None:
    """
    Take the next attempt at a target: the gravest message first, then edits.

    None when nothing is due, the target is to be left alone for now, or `per_minute` messages went
    to it within the last minute. The row of the target is locked, so that workers count together.
    """
    now = database_now(connection)
    state = _lock_state(connection, channel, target)
    if state.paused_until is not None and state.paused_until > now:
        return None
    ours = _is_to(channel, target)
    row = None
    messages = _messages_within(connection, channel, target, now)
    if messages < per_minute:
        row = connection.execute(
            select(deliveries)
            .where(ours, _sending_due(now))
            .order_by(
                deliveries.c.priority.desc(),
                deliveries.c.next_attempt_at,
                deliveries.c.created_at,
                deliveries.c.id,
            )
            .limit(1)
            .with_for_update()
        ).first()
    values: dict[str, Any] = {"claimed_by": owner, "claimed_until": now + timedelta(seconds=claim_s)}
    if row is not None:
        values |= {
            "state": "sending",
            "attempts": row.attempts + 1,
            "may_repeat": row.may_repeat or row.state == "sending",
            "edit_wanted_at": None,  # what is sent now says how things stand
        }
    else:
        is_busy = messages + _edits_within(connection, channel, target, now) >= per_minute + EDITS_BESIDE
        row = connection.execute(
            select(deliveries)
            .where(ours, _edit_due(now - _AT_ONCE / 2 if is_busy else now))
            .order_by(deliveries.c.edit_wanted_at)
            .limit(1)
            .with_for_update()
        ).first()
        if row is None:
            return None
        # Due again when the claim runs out; `want_edits` puts another time in its place.
        values["edit_wanted_at"] = values["claimed_until"]
    connection.execute(update(deliveries).where(deliveries.c.id == row.id).values(fence=row.fence + 1, **values))
    subject = subject_of(connection, row.alert_id)
    subject.may_repeat = values.get("may_repeat", row.may_repeat)
    is_edit = row.state == "sent"
    return Claim(
        delivery_id=row.id,
        fence=row.fence + 1,
        channel=channel,
        target=target,
        address=state.moved_to or target,
        attempt=values.get("attempts", _EDIT_ATTEMPT + _failures(row.log)),
        external_id=row.external_id if is_edit else None,
        edit_wanted_at=values["edit_wanted_at"],
        subject=subject,
    )


def _failures(log: Sequence[dict[str, Any]]) -> int:
    """How many of the last attempts failed."""
    return len(list(takewhile(lambda line: line["outcome"] not in ("sent", "edited"), reversed(log))))


def _lock_state(connection: Connection, channel: str, target: str) -> Row[Any]:
    connection.execute(
        _insert(connection)(channel_states)
        .values(channel=channel, target=target)
        .on_conflict_do_nothing(index_elements=["channel", "target"])
    )
    return connection.execute(
        select(channel_states)
        .where(channel_states.c.channel == channel, channel_states.c.target == target)
        .with_for_update()
    ).one()


def mark_sent(connection: Connection, claim: Claim, external_id: str | None) -> bool:
    """The message is out. False when the claim had run out and somebody else has it now."""
    now = database_now(connection)
    values: dict[str, Any] = {"state": "sent", "sent_at": now, "external_id": external_id, "last_error": None}
    if not _finish(connection, claim, now, "sent", **values):
        return False
    _set_state(
        connection, claim, last_ok_at=now, paused_until=None, parked_reason=None, last_error=None, last_error_at=None
    )
    return True


def mark_edited(connection: Connection, claim: Claim) -> bool:
    """The message was edited, or needs no edit any more."""
    now = database_now(connection)
    return _finish(connection, claim, now, "edited", edited_at=now, edit_wanted_at=_unless_wanted_since(claim))


def mark_retry(connection: Connection, claim: Claim, error: str, *, pause_s: float, unclear: bool = False) -> bool:
    """
    The attempt failed for a reason that passes: no worker tries this target again before `pause_s`.

    Args:
        unclear: the message may have arrived all the same, so the next attempt may repeat it.
    """
    now = database_now(connection)
    until = now + timedelta(seconds=pause_s)
    done = _put_off(connection, claim, now, until, error, unclear=unclear)
    if done:
        _set_state(connection, claim, paused_until=until, last_error=error, last_error_at=now)
    return done


def postpone(connection: Connection, claim: Claim, error: str, *, pause_s: float) -> bool:
    """The attempt failed by what this message is, or by our own fault: others to the same target may pass."""
    now = database_now(connection)
    return _put_off(connection, claim, now, now + timedelta(seconds=pause_s), error, unclear=True)


def _put_off(
    connection: Connection, claim: Claim, now: datetime, until: datetime, error: str, *, unclear: bool
) -> bool:
    if claim.external_id is not None:
        return _finish(connection, claim, now, "retry", error=error, edit_wanted_at=until)
    values: dict[str, Any] = {"state": "pending", "next_attempt_at": until, "last_error": error}
    if unclear:
        values["may_repeat"] = True
    return _finish(connection, claim, now, "retry", error=error, **values)


def mark_failed(connection: Connection, claim: Claim, error: str) -> bool:
    """This message cannot be delivered, whatever is tried; others to the same target can."""
    now = database_now(connection)
    if claim.external_id is not None:
        done = _finish(connection, claim, now, "failed", error=error, edit_wanted_at=None)
    else:
        done = _finish(connection, claim, now, "failed", error=error, state="failed", last_error=error)
    if done:
        _set_state(connection, claim, last_error=error, last_error_at=now)
    return done


def park(connection: Connection, claim: Claim, error: str, *, retry_s: float) -> bool:
    """
    The target refuses until somebody mends it: leave it alone for `retry_s`, and keep what waits for it.

    A refused edit waits alone: its message may be out of reach in a chat that takes new ones.
    """
    now = database_now(connection)
    until = now + timedelta(seconds=retry_s)
    if claim.external_id is not None:
        done = _finish(connection, claim, now, "refused", error=error, edit_wanted_at=until)
        values: dict[str, Any] = {}
    else:
        done = _finish(connection, claim, now, "refused", error=error, state="pending", last_error=error)
        values = {"parked_reason": error, "paused_until": until}
    if done:
        _set_state(connection, claim, last_error=error, last_error_at=now, **values)
    return done


def move(connection: Connection, claim: Claim, new_address: str) -> bool:
    """The chat has a new id: remember it, and try there at once."""
    now = database_now(connection)
    remember_move(connection, claim.channel, claim.target, new_address)
    if claim.external_id is not None:
        return _finish(connection, claim, now, "moved", edit_wanted_at=None)  # the old message stayed behind
    return _finish(connection, claim, now, "moved", state="pending", next_attempt_at=now)


def remember_move(connection: Connection, channel: str, target: str, new_address: str) -> None:
    """Remember where a target went."""
    _lock_state(connection, channel, target)
    connection.execute(
        update(channel_states)
        .where(channel_states.c.channel == channel, channel_states.c.target == target)
        .values(moved_to=new_address)
    )


def unpark(connection: Connection, channels: Sequence[str]) -> None:
    """Try parked targets again at once; somebody may have mended them before this start."""
    connection.execute(
        update(channel_states)
        .where(channel_states.c.channel.in_(channels), channel_states.c.parked_reason.is_not(None))
        .values(paused_until=None)
    )


def give_up(connection: Connection, targets: Collection[tuple[str, str]], before: datetime) -> int:
    """
    Fail what has waited since `before` for a target that is not set up any more, and forget its edits.

    Returns:
        How many messages will never be said.
    """
    waits = and_(_IS_OPEN, deliveries.c.created_at < before)
    failed: dict[str, Any] = {"state": "failed", "last_error": "this target is not set up any more"}
    _of_the_gone(connection, deliveries.c.edit_wanted_at < before, targets, edit_wanted_at=None)
    return _of_the_gone(connection, waits, targets, edit_wanted_at=None, **failed)


def _of_the_gone(connection: Connection, which: Any, targets: Collection[tuple[str, str]], **values: Any) -> int:
    """Change those deliveries that go to none of the targets; how many there were."""
    found = connection.execute(select(deliveries.c.channel, deliveries.c.target).where(which).distinct()).all()
    return sum(
        connection.execute(
            update(deliveries)
            .where(which, deliveries.c.channel == channel, deliveries.c.target == target)
            .values(**values)
        ).rowcount
        for channel, target in found
        if (channel, target) not in targets
    )


def _unless_wanted_since(claim: Claim) -> Any:
    """NULL, but a wish that came while the edit was on its way stays."""
    return func.nullif(deliveries.c.edit_wanted_at, literal(claim.edit_wanted_at, deliveries.c.edit_wanted_at.type))


def _finish(
    connection: Connection, claim: Claim, now: datetime, outcome: str, *, error: str | None = None, **values: Any
) -> bool:
    mine = and_(
        deliveries.c.id == claim.delivery_id,
        deliveries.c.fence == claim.fence,
        deliveries.c.claimed_until.is_not(None),
    )
    log = connection.execute(select(deliveries.c.log).where(mine).with_for_update()).scalar_one_or_none()
    if log is None:
        return False
    line = {"at": now.isoformat(), "outcome": outcome, "error": error}
    connection.execute(
        update(deliveries)
        .where(mine)
        .values(log=[*log, line][-LOG_LIMIT:], claimed_by=None, claimed_until=None, **values)
    )
    return True


def _set_state(connection: Connection, claim: Claim, **values: Any) -> None:
    connection.execute(
        update(channel_states)
        .where(channel_states.c.channel == claim.channel, channel_states.c.target == claim.target)
        .values(**values)
    )


# What messages are made of.


def subject_of(connection: Connection, alert_id: str) -> Subject:
    """An alert with its groups as they stand now."""
    alert = _alert(connection.execute(select(alerts).where(alerts.c.id == alert_id)).one())
    ids = [alert.group_id] if alert.group_id else list(alert.details.get("groups", ()))
    rows = connection.execute(select(error_groups).where(error_groups.c.id.in_(ids))).mappings()
    groups = [Group.from_row(row) for row in rows]
    if alert.group_id is None or not groups:
        return Subject(alert=alert, groups=groups)
    return Subject(
        alert=alert, groups=groups, error=last_error(connection, groups[0]), act=last_act(connection, groups[0])
    )


def last_error(connection: Connection, group: Group) -> ErrorSeen | None:
    """A group's newest stored error, as far as messages show it."""
    if group.last_error_id is None:
        return None
    row = connection.execute(
        select(
            error_logs.c.message,
            error_logs.c.exception_type,
            error_logs.c.release,
            error_logs.c.trace_id,
            error_logs.c.timestamp,
            error_logs.c.context,
            shortened("stack", STACK_LIMIT),
        ).where(error_logs.c.id == group.last_error_id)
    ).first()
    if row is None:
        return None
    return ErrorSeen(
        message=row.message,
        exception_type=row.exception_type,
        release=row.release,
        trace_id=row.trace_id,
        timestamp=row.timestamp,
        context=row.context if isinstance(row.context, dict) else {},
        stack=row.stack if isinstance(row.stack, str) else None,
    )


_ACTIONS = {
    Status.RESOLVED: Trigger.RESOLVE,
    Status.ACKNOWLEDGED: Trigger.ACKNOWLEDGE,
    Status.MUTED: Trigger.MUTE,
    Status.IGNORED: Trigger.IGNORE,
    Status.OPEN: Trigger.REOPEN,
}


def last_act(connection: Connection, group: Group) -> audit.Entry | None:
    """Who brought a group to the status that it has, if a person did."""
    for entry in audit.of_target(connection, f"#{group.number}", limit=20):
        if not entry.allowed or entry.action not in _ACTIONS.values():
            continue
        if entry.action != _ACTIONS[group.status]:
            if group.status == Status.OPEN:
                return None  # it was closed since, and came back by itself
            continue
        if group.status != Status.RESOLVED or entry.actor == group.resolved_by:
            return entry
    return None


def group_of_message(connection: Connection, channel: str, address: str, external_id: str) -> list[int]:
    """The numbers of the groups that a sent message is about."""
    moved = select(channel_states.c.target).where(
        channel_states.c.channel == channel, channel_states.c.moved_to == address
    )
    alert_id = connection.execute(
        select(deliveries.c.alert_id).where(
            deliveries.c.channel == channel,
            or_(deliveries.c.target == address, deliveries.c.target.in_(moved)),
            deliveries.c.external_id == external_id,
        )
    ).scalar()
    if alert_id is None:
        return []
    return sorted(group.number for group in subject_of(connection, alert_id).groups)


# What people and health look at.


def list_alerts(
    connection: Connection, *, limit: int = 50, before: str | None = None
) -> tuple[list[ListedAlert], str | None]:
    """
    Alerts with their deliveries, newest first.

    Args:
        before: the second value of the answer before; opaque.
    """
    wanted = select(alerts, error_groups.c.number).outerjoin(error_groups, error_groups.c.id == alerts.c.group_id)
    if before is not None:
        moment, alert_id = cursors.decode(before)
        if not is_error_id(alert_id):  # a place in another list
            raise cursors.refusal()
        wanted = wanted.where(
            or_(alerts.c.created_at < moment, and_(alerts.c.created_at == moment, alerts.c.id < alert_id))
        )
    rows = connection.execute(wanted.order_by(alerts.c.created_at.desc(), alerts.c.id.desc()).limit(limit + 1)).all()
    more, rows = len(rows) > limit, rows[:limit]
    listed = {row.id: ListedAlert(alert=_alert(row), number=row.number) for row in rows}
    for row in connection.execute(
        select(deliveries).where(deliveries.c.alert_id.in_(listed)).order_by(deliveries.c.id)
    ):
        listed[row.alert_id].deliveries.append(_delivery(row))
    return list(listed.values()), cursors.encode(rows[-1].created_at, rows[-1].id) if more else None


def states(connection: Connection) -> list[ChannelState]:
    """How each target that was ever tried stands."""
    return [
        ChannelState(**row._mapping)
        for row in connection.execute(
            select(channel_states).order_by(channel_states.c.channel, channel_states.c.target)
        )
    ]


def oldest_pending(connection: Connection) -> datetime | None:
    """Since when the oldest delivery has been waiting."""
    oldest: datetime | None = connection.execute(
        select(func.min(deliveries.c.created_at, type_=deliveries.c.created_at.type)).where(_IS_OPEN)
    ).scalar_one()
    return oldest


def overview(connection: Connection, now: datetime) -> Overview:
    """The few figures of /status; of a storm at most `RECENT_AT_MOST` rows are added up, as health does."""
    unsolved = (Status.OPEN, Status.ACKNOWLEDGED)
    by_severity = connection.execute(
        select(error_groups.c.severity, func.count())
        .where(error_groups.c.status.in_(unsolved))
        .group_by(error_groups.c.severity)
    ).all()
    recent = (
        select(error_logs.c.count)
        .where(error_logs.c.timestamp > now - timedelta(hours=1))
        .order_by(error_logs.c.timestamp.desc())
        .limit(RECENT_AT_MOST)
        .subquery()
    )
    errors = connection.execute(select(func.coalesce(func.sum(recent.c.count), 0))).scalar_one()
    alive = connection.execute(
        select(func.count()).where(instances.c.ended_at.is_(None), instances.c.last_seen > now - timedelta(minutes=2))
    ).scalar_one()
    return Overview(
        open_groups={Severity(severity): count for severity, count in by_severity},
        errors_last_hour=int(errors),
        instances=alive,
        oldest_pending_at=oldest_pending(connection),
    )


def totals(connection: Connection, since: datetime) -> dict[Severity, int]:
    """Errors by severity since the begin of the hour of a moment."""
    hour = since.replace(minute=0, second=0, microsecond=0)
    rows = connection.execute(
        select(hourly_totals.c.severity, func.sum(hourly_totals.c.count))
        .where(hourly_totals.c.hour >= hour)
        .group_by(hourly_totals.c.severity)
    )
    return {Severity(severity): int(count) for severity, count in rows}


_UPDATES_APART = 10_000
"""Telegram numbers updates one by one; after a week without any it may begin anywhere else."""


def is_first_sight(connection: Connection, bot: str, update_id: int) -> bool:
    """Whether an update of a bot was not seen before by any process; from now on it was."""
    name = f"telegram_update:{bot}"
    connection.execute(
        _insert(connection)(counters).values(name=name, value=-1).on_conflict_do_nothing(index_elements=["name"])
    )
    seen = connection.execute(select(counters.c.value).where(counters.c.name == name).with_for_update()).scalar_one()
    if seen - _UPDATES_APART < update_id <= seen:
        return False
    connection.execute(update(counters).where(counters.c.name == name).values(value=update_id))
    return True


def _alert(row: Row[Any]) -> Alert:
    return Alert(
        id=row.id,
        created_at=row.created_at,
        reason=row.reason,
        group_id=row.group_id,
        severity=Severity(row.severity),
        service=row.service,
        environment=row.environment,
        details=row.details,
    )


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        channel=row.channel,
        target=row.target,
        state=row.state,
        attempts=row.attempts,
        created_at=row.created_at,
        sent_at=row.sent_at,
        external_id=row.external_id,
        last_error=row.last_error,
        may_repeat=row.may_repeat,
        log=[
            Attempt(at=datetime.fromisoformat(line["at"]), outcome=line["outcome"], error=line["error"])
            for line in row.log
        ],
    )
