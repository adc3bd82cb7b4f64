"""What rings, as tables."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.alerts.samples import NOW, fold, group, last, plain_settings
from tocsin.alerts.limits import Limits
from tocsin.alerts.rules import (
    Decision,
    Edit,
    Plan,
    Reason,
    decide,
    dedupe_key,
    follows,
    is_silent,
    likely_cause_first,
    plan,
)
from tocsin.lifecycle import Status
from tocsin.model import Severity
from tocsin.store.alerts import Fold, LastAlert
from tocsin.store.groups import Group, Mark

LOW, MEDIUM, HIGH, CRITICAL = Severity
NEVER = None
RUNG_HIGH = last(HIGH)
RUNG_CRITICAL = last(CRITICAL)


@pytest.mark.parametrize(
    ("mark", "severity", "status", "before", "rings"),
    [
        # Something new rings from high upwards.
        (Mark.NEW, CRITICAL, Status.OPEN, NEVER, Reason.NEW),
        (Mark.NEW, HIGH, Status.OPEN, NEVER, Reason.NEW),
        (Mark.NEW, MEDIUM, Status.OPEN, NEVER, None),
        (Mark.NEW, LOW, Status.OPEN, NEVER, None),
        (Mark.NEW, HIGH, Status.ACKNOWLEDGED, NEVER, Reason.NEW),
        # What comes back rings each time.
        (Mark.REGRESSED, HIGH, Status.OPEN, RUNG_HIGH, Reason.REGRESSED),
        (Mark.REGRESSED, CRITICAL, Status.OPEN, RUNG_CRITICAL, Reason.REGRESSED),
        (Mark.REGRESSED, MEDIUM, Status.OPEN, NEVER, None),
        (Mark.UNMUTED, HIGH, Status.OPEN, RUNG_HIGH, Reason.UNMUTED),
        (Mark.UNMUTED, LOW, Status.OPEN, NEVER, None),
        # More of the same does not ring …
        (Mark.SEEN, HIGH, Status.OPEN, RUNG_HIGH, None),
        (Mark.SEEN, CRITICAL, Status.OPEN, RUNG_CRITICAL, None),
        # … unless it has become grave since.
        (Mark.SEEN, HIGH, Status.OPEN, NEVER, Reason.NEW),
        (Mark.SEEN, CRITICAL, Status.OPEN, NEVER, Reason.NEW),
        (Mark.SEEN, CRITICAL, Status.OPEN, RUNG_HIGH, Reason.CRITICAL),
        (Mark.SEEN, CRITICAL, Status.ACKNOWLEDGED, RUNG_HIGH, Reason.CRITICAL),
        (Mark.GRAVER, CRITICAL, Status.ACKNOWLEDGED, RUNG_HIGH, Reason.CRITICAL),
        (Mark.GRAVER, HIGH, Status.ACKNOWLEDGED, NEVER, Reason.NEW),
        (Mark.GRAVER, HIGH, Status.OPEN, RUNG_HIGH, None),
        (Mark.CHANGED, CRITICAL, Status.ACKNOWLEDGED, RUNG_HIGH, Reason.CRITICAL),
        # What people have done with is left alone.
        (Mark.SEEN, CRITICAL, Status.MUTED, RUNG_HIGH, None),
        (Mark.NEW, CRITICAL, Status.MUTED, NEVER, None),
        (Mark.NEW, CRITICAL, Status.IGNORED, NEVER, None),
        (Mark.NEW, CRITICAL, Status.RESOLVED, NEVER, None),
        (Mark.REGRESSED, CRITICAL, Status.RESOLVED, RUNG_HIGH, None),
        (Mark.SEEN, HIGH, Status.RESOLVED, NEVER, None),
        (Mark.CHANGED, HIGH, Status.OPEN, NEVER, None),
        (Mark.CHANGED, HIGH, Status.OPEN, RUNG_HIGH, None),
    ],
)
def test_what_rings_and_why(
    mark: Mark, severity: Severity, status: Status, before: LastAlert | None, rings: Reason | None
) -> None:
    """Critical always and once, high when it is news, the rest never."""
    decided = decide(group(mark=mark, severity=severity, status=status), before, plain_settings())

    assert decided.ring == rings


@pytest.mark.parametrize(
    ("mark", "before", "edit"),
    [
        (Mark.SEEN, RUNG_HIGH, Edit.SOON),
        (Mark.CHANGED, RUNG_HIGH, Edit.AT_ONCE),
        (Mark.GRAVER, RUNG_HIGH, Edit.AT_ONCE),
        (Mark.SEEN, NEVER, Edit.NO),
        (Mark.CHANGED, NEVER, Edit.NO),
    ],
)
def test_a_message_that_is_there_is_edited(mark: Mark, before: LastAlert | None, edit: Edit) -> None:
    """Counts may wait a little; what a person did may not."""
    decided = decide(group(mark=mark, status=Status.RESOLVED), before, plain_settings())

    assert decided == Decision(edit=edit)


@pytest.mark.parametrize(
    ("environment", "words", "rings"),
    [
        ("production", None, True),
        ("development", None, False),
        ("test", None, False),
        ("staging", ("production",), False),
        ("test", ("*",), True),
    ],
)
def test_only_chosen_environments_ring(environment: str, words: tuple[str, ...] | None, rings: bool) -> None:
    """Not where people develop and test, unless they want it."""
    settings = plain_settings(**({} if words is None else {"alert_environments": words}))

    assert bool(decide(group(environment=environment), None, settings).ring) is rings


def test_one_mark_gives_one_key() -> None:
    """Two leaders that see one mark make one alert; the next mark makes another."""
    one, other = group(marked_at=NOW), group(marked_at=NOW + timedelta(seconds=1))

    assert dedupe_key(one, Reason.NEW) == dedupe_key(group(marked_at=NOW), Reason.NEW)
    assert len({dedupe_key(one, Reason.NEW), dedupe_key(one, Reason.CRITICAL), dedupe_key(other, Reason.NEW)}) == 3


@pytest.mark.parametrize(
    ("severity", "status", "silent"),
    [
        (CRITICAL, Status.OPEN, False),
        (HIGH, Status.OPEN, True),
        (CRITICAL, Status.RESOLVED, True),
    ],
)
def test_sound_is_for_what_is_critical_and_still_there(severity: Severity, status: Status, silent: bool) -> None:
    """Nobody is woken for what is solved."""
    assert is_silent(severity, [status]) is silent


def test_the_likely_cause_comes_first() -> None:
    """Critical, then what makes others fail, then what happens most."""
    rare = group(1, count=1)
    frequent = group(2, count=50)
    database = group(3, category="database", count=2)
    fatal = group(4, severity=CRITICAL)

    assert likely_cause_first([rare, frequent, database, fatal]) == [fatal, database, frequent, rare]


def planned(ringing: list[Group], before: int = 0, newest: Fold | None = None, **values: Any) -> Plan:
    return plan(
        ringing,
        rung_before=before,
        fold=newest,
        critical_fold=newest if newest and newest.severity == CRITICAL else None,
        settings=plain_settings(),
        limits=Limits(**values),
        now=NOW,
    )


@pytest.mark.parametrize(
    ("count", "before", "alone", "folded"),
    [(1, 0, 1, 0), (10, 0, 10, 0), (11, 0, 0, 11), (37, 0, 0, 37), (1, 9, 1, 0), (1, 10, 0, 1), (5, 8, 0, 5)],
)
def test_more_than_ten_in_half_a_minute_become_one_message(count: int, before: int, alone: int, folded: int) -> None:
    """Those that rang alone just before are counted as well."""
    result = planned([group(number) for number in range(count)], before)

    assert (len(result.alone), len(result.folded), result.joining) == (alone, folded, [])


@pytest.mark.parametrize(
    ("newest", "joins"),
    [
        (fold(11), True),
        (fold(11, age_s=200, idle_s=29), True),
        (fold(11, age_s=40, idle_s=31), False),
        (fold(11, age_s=301, idle_s=1), False),
        (fold(250), False),
    ],
)
def test_a_late_group_joins_a_fold_that_is_still_open(newest: Fold, joins: bool) -> None:
    """Until nothing came for half a minute, it has become old, or is full."""
    assert bool(planned([group()], newest=newest).joining) is joins


def test_a_fold_takes_no_more_than_fit_in_its_message() -> None:
    """The rest begins the next one."""
    result = planned([group(number) for number in range(20)], 11, fold(240))

    assert (len(result.joining), len(result.folded)) == (10, 10)


def test_a_critical_group_does_not_slip_silently_into_a_fold() -> None:
    """An edit makes no sound, so it joins only what rang with sound."""
    fatal = group(severity=CRITICAL)

    assert planned([fatal], 11, fold(11)).folded == [fatal]
    assert planned([fatal], 11, fold(11, severity=CRITICAL)).joining


@pytest.mark.parametrize(
    ("channel", "counts", "acts", "joins"),
    [
        ("telegram", True, True, True),
        ("console", True, True, True),
        ("webhook", False, True, True),
        ("email", False, False, True),
    ],
)
def test_each_channel_follows_what_it_can(channel: str, counts: bool, acts: bool, joins: bool) -> None:
    """A chat shows all, a program hears of turns, a mail is written again only for what was never mailed."""
    assert follows(channel, Edit.SOON) is counts
    assert follows(channel, Edit.AT_ONCE) is acts
    assert follows(channel, Edit.SOON, of_fold=True) is joins
    assert not follows("telegram", Edit.NO)
