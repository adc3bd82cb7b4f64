"""
What rings: decided from a group's row, what was said of it before, and the settings. Pure.

*Critical* rings at once, with sound; *high* when it is new, regressed or no longer muted, without
sound; the rest never. The wish for quiet hours will be a further reason to hold a ring back here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from tocsin.alerts.limits import Limits
from tocsin.lifecycle import Status
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store.alerts import Fold, LastAlert
from tocsin.store.groups import Group, Mark


class Reason(StrEnum):
    """Why an alert was made."""

    NEW = "new"
    REGRESSED = "regressed"
    CRITICAL = "critical"  #  it rang before, as something lesser
    UNMUTED = "unmuted"
    RECOVERED = "recovered"  # it is over, as tocsin saw by itself: whoever heard of it hears that too
    FOLD = "fold"  #          many at once, in one message
    TEST = "test"


class Edit(StrEnum):
    """Whether the message that a group has must be edited."""

    NO = "no"
    SOON = "soon"  #      only counts have grown
    AT_ONCE = "at once"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a look comes to for one group."""

    ring: Reason | None = None
    edit: Edit = Edit.NO


def follows(channel: str, edit: Edit, *, of_fold: bool = False) -> bool:
    """
    Whether what a channel has said is to be brought up to date: by an edit, an event or another mail.

    A chat shows how things stand now. A program is told what people did, and who joined a fold, but not
    of every count. A mail can say once more who joined; whoever wants to know the rest looks at the page.
    """
    if channel == "email":
        return of_fold
    if channel == "webhook":
        return of_fold or edit == Edit.AT_ONCE
    return edit != Edit.NO


_RINGING = (Status.OPEN, Status.ACKNOWLEDGED)


def decide(group: Group, last: LastAlert | None, settings: Settings) -> Decision:
    """
    Whether a marked group rings, its message is edited, or neither.

    Args:
        group: with its mark, as it stands in the transaction that clears the mark.
        last: what was said last about it.
    """
    if group.mark == Mark.RECOVERED:
        return _recovered(group, last)
    reason = _reason(group, last)
    if reason is not None and settings.rings_in(group.environment):
        return Decision(ring=reason)
    if last is None:
        return Decision()
    return Decision(edit=Edit.SOON if group.mark == Mark.SEEN else Edit.AT_ONCE)


def _recovered(group: Group, last: LastAlert | None) -> Decision:
    if last is None or last.reason == Reason.RECOVERED:
        return Decision()
    is_over = group.status == Status.RESOLVED and last.fold_id is None  # a fold says itself what is solved
    return Decision(ring=Reason.RECOVERED if is_over else None, edit=Edit.AT_ONCE)


def _reason(group: Group, last: LastAlert | None) -> Reason | None:
    if group.status not in _RINGING or group.severity.rank < Severity.HIGH.rank:
        return None
    if group.mark == Mark.REGRESSED:
        return Reason.REGRESSED
    if group.mark == Mark.UNMUTED:
        return Reason.UNMUTED
    if last is None and group.mark == Mark.CHANGED:  # a person was here first, and knows
        return None
    if last is None or group.mark == Mark.NEW:  # also when only an amendment made it grave enough
        return Reason.NEW
    if group.severity == Severity.CRITICAL and last.severity != Severity.CRITICAL:
        return Reason.CRITICAL
    return None


def dedupe_key(group: Group, reason: Reason) -> str:
    """What makes a ring the same ring, should two leaders decide on one mark at once."""
    return f"{group.id}:{reason}:{group.marked_at.isoformat() if group.marked_at else group.regressions}"


def is_silent(severity: Severity, statuses: Collection[Status] = (Status.OPEN,)) -> bool:
    """Whether a message comes without sound: below critical, or when nothing is left to do."""
    return severity != Severity.CRITICAL or not any(status in _RINGING for status in statuses)


_ROOTS = ("database", "network")


def likely_cause_first(groups: Sequence[Group]) -> list[Group]:
    """Groups of a fold: the critical, then those whose kind makes others fail, then the most frequent."""
    return sorted(
        groups,
        key=lambda group: (
            group.severity != Severity.CRITICAL,
            group.category not in _ROOTS,
            -group.severity.rank,
            -group.count,
            group.number,
        ),
    )


@dataclass(slots=True)
class Plan:
    """How the rings of one look are said."""

    alone: list[Group] = field(default_factory=list)  #                 a message each
    joining: list[tuple[Group, Fold]] = field(default_factory=list)  #  in a fold that is there
    folded: list[Group] = field(default_factory=list)  #                in new folds


def plan(
    ringing: Sequence[Group],
    *,
    rung_before: int,
    fold: Fold | None,
    critical_fold: Fold | None,
    settings: Settings,
    limits: Limits,
    now: datetime,
) -> Plan:
    """
    Who rings alone and who is folded.

    A critical group joins only a fold that rang with sound: an edit makes none.

    Args:
        rung_before: groups that rang within the window before this look.
        fold: the newest fold of any severity.
        critical_fold: the newest one that is critical.
    """
    result = Plan()
    rest = []
    for group in likely_cause_first(ringing):
        home = critical_fold if group.severity == Severity.CRITICAL else fold
        joined = sum(1 for _, other in result.joining if home is not None and other.id == home.id)
        if home is not None and _is_open(home, joined, limits, now):
            result.joining.append((group, home))
        else:
            rest.append(group)
    if rung_before + len(ringing) > settings.fold_above:
        result.folded = rest
    else:
        result.alone = rest
    return result


def _is_open(fold: Fold, joined: int, limits: Limits, now: datetime) -> bool:
    return (
        now - fold.last_at <= timedelta(seconds=limits.fold_window_s)
        and now - fold.created_at <= timedelta(seconds=limits.fold_at_most_s)
        and len(fold.group_ids) + joined < limits.fold_groups
    )
