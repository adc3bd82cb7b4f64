"""One look of the leader: from marks to alerts and deliveries, in the transaction that clears the marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Connection

from tocsin.alerts.limits import Limits
from tocsin.alerts.rules import Decision, Edit, Reason, decide, dedupe_key, follows, plan
from tocsin.model import worst
from tocsin.settings import Settings
from tocsin.store import alerts
from tocsin.store.alerts import Fold
from tocsin.store.engine import wake_others
from tocsin.store.groups import Group, Mark
from tocsin.store.leases import database_now


@dataclass(slots=True)
class Looked:
    """What a look has done."""

    groups: int = 0  #                                       marks that it cleared
    rung: list[tuple[int, Reason]] = field(default_factory=list)
    edits: int = 0
    acted: bool = False  #                                   somebody changed a group: rows may wait to be settled


def look(connection: Connection, settings: Settings, limits: Limits, targets: Sequence[tuple[str, str]]) -> Looked:
    """
    Decide on every marked group.

    Args:
        targets: each (channel, target) that an alert goes to.
    """
    now = database_now(connection)
    seen_before = now - timedelta(seconds=limits.seen_after_s)
    marked = alerts.marked(connection, limits.marked_at_once, seen_before=seen_before)
    if not marked:
        return Looked()
    last = alerts.last_alerts(connection, [group.id for group in marked])
    decisions = {group.id: decide(group, last.get(group.id), settings) for group in marked}
    ringing = [group for group in marked if decisions[group.id].ring]
    looked = Looked(
        groups=len(marked),
        rung=[(group.number, reason) for group in marked if (reason := decisions[group.id].ring)],
        edits=sum(decision.edit != Edit.NO for decision in decisions.values()),
        acted=any(group.mark == Mark.CHANGED or group.rows_pending for group in marked),
    )

    if ringing:
        _ring(connection, ringing, decisions, settings=settings, limits=limits, targets=targets)
    for edit, every_s in ((Edit.SOON, limits.edit_every_s), (Edit.AT_ONCE, 0.0)):
        shown = [last[group.id].message_id for group in marked if decisions[group.id].edit == edit]
        if shown:
            following = {channel for channel, _ in targets if follows(channel, edit)}
            alerts.want_edits(connection, shown, channels=following, now=now, every_s=every_s)
    alerts.clear_marks(connection, [group.id for group in marked])
    if any(one.ring or one.edit == Edit.AT_ONCE for one in decisions.values()):
        wake_others(connection)
    return looked


def _ring(
    connection: Connection,
    ringing: Sequence[Group],
    decisions: dict[str, Decision],
    *,
    settings: Settings,
    limits: Limits,
    targets: Sequence[tuple[str, str]],
) -> None:
    now = database_now(connection)
    since = now - timedelta(seconds=limits.fold_at_most_s)
    plans = plan(
        ringing,
        rung_before=alerts.count_rung(connection, now - timedelta(seconds=limits.fold_window_s)),
        fold=alerts.latest_fold(connection, since, critical=False),
        critical_fold=alerts.latest_fold(connection, since, critical=True),
        settings=settings,
        limits=limits,
        now=now,
    )

    def note(group: Group, fold: Fold | None) -> str | None:
        reason = decisions[group.id].ring or Reason.NEW
        return alerts.add_alert(
            connection,
            reason=reason,
            severity=group.severity,
            group=group,
            details={"fold": fold.id} if fold else {},
            dedupe_key=dedupe_key(group, reason),
            now=now,
        )

    for group in plans.alone:
        if alert_id := note(group, None):
            alerts.add_deliveries(connection, alert_id, targets, priority=group.severity.rank, now=now)
    folds = {fold.id: fold for _, fold in plans.joining}
    for fold_id, fold in folds.items():
        joined = [group.id for group, home in plans.joining if home.id == fold_id and note(group, fold)]
        alerts.add_to_fold(connection, fold, joined, now)
    for channel in {channel for channel, _ in targets if follows(channel, Edit.SOON, of_fold=True)}:
        every_s = limits.fold_mail_every_s if channel == "email" else limits.fold_edit_every_s
        alerts.want_edits(connection, folds, channels=[channel], now=now, every_s=every_s)
    for start in range(0, len(plans.folded), limits.fold_groups):
        many = plans.folded[start : start + limits.fold_groups]
        severity = worst(*(group.severity for group in many))
        fold = alerts.add_fold(connection, severity=severity, now=now)
        alerts.add_to_fold(connection, fold, [group.id for group in many if note(group, fold)], now)
        if fold.group_ids:
            alerts.add_deliveries(connection, fold.id, targets, priority=severity.rank, now=now)
