"""Messages that a phone can act on, whatever is in them."""

from __future__ import annotations

import re
from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.alerts.samples import NOW, group, plain_settings, seen, subject
from tests.standin.telegram import plain_text
from tocsin.alerts import messages
from tocsin.alerts.catalogue import CATALOGUES, Texts
from tocsin.lifecycle import Status
from tocsin.model import Severity
from tocsin.store.audit import Entry

WITH_LINKS = plain_settings(public_url="https://tocsin.example", trace_url="https://grafana.example/t/{trace_id}?a={b}")


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", CATALOGUES)
def test_every_language_has_every_text(language: str) -> None:
    """With the same values in it, so that none fails in one language only."""
    english, other = CATALOGUES["en"], CATALOGUES[language]

    assert other.keys() == english.keys()
    assert {key: placeholders(text) for key, text in other.items()} == {
        key: placeholders(text) for key, text in english.items()
    }


def test_values_are_no_templates() -> None:
    """A text from outside that looks like a template stays what it is."""
    assert Texts("en")("bot.not_understood", text="{0.__class__} %n").startswith("I do not understand {0.__class__} %n")


def test_an_alert_says_what_a_phone_needs() -> None:
    """What, where, how often, since when, and where to look further."""
    message = messages.render(subject(group(count=3), error=seen()), WITH_LINKS, NOW)

    assert message.plain.splitlines() == [
        "🟠 HIGH #42 new",
        "KeyError",
        "'phone'",
        "▸ shop.orders in create_order shop/orders.py:42",
        "service shop · environment production · release v2",
        "count 3 · first 08:26:53 · last 09:26:53",
        "Open: https://tocsin.example/admin/debug/groups/42 · "
        "Trace: https://grafana.example/t/0af7651916cd43dd8448eb211c80319c?a={b}",
    ]
    assert '<a href="https://tocsin.example/admin/debug/groups/42">Open</a>' in message.html
    assert [[button.data for button in row] for row in message.buttons] == [["res:42", "ack:42"], ["mut:42", "det:42"]]


def test_an_alert_without_an_error_still_says_what_its_group_knows() -> None:
    """The error may be gone, by retention."""
    message = messages.render(subject(group(culprit=None, last_release=None)), plain_settings(), NOW)

    assert message.plain.splitlines()[:4] == [
        "🟠 HIGH #42 new",
        "KeyError",
        "KeyError: 'phone'",
        "service shop · environment production",
    ]


@pytest.mark.parametrize(
    ("status", "action", "line", "buttons"),
    [
        (Status.RESOLVED, "resolve", "✅ resolved by @anna (17) (telegram), 09:26:53", ["reo:42", "det:42"]),
        (Status.IGNORED, "ignore", "🚫 ignored by @anna (17) (telegram), 09:26:53", ["reo:42", "det:42"]),
        (Status.MUTED, "mute", "🔇 muted until 10:00:00 by @anna (17) (telegram), 09:26:53", ["reo:42", "det:42"]),
        (
            Status.ACKNOWLEDGED,
            "acknowledge",
            "👀 acknowledged by @anna (17) (telegram), 09:26:53",
            ["res:42", "mut:42", "det:42"],
        ),
        (
            Status.OPEN,
            "reopen",
            "🔔 reopened by @anna (17) (telegram), 09:26:53",
            ["res:42", "ack:42", "mut:42", "det:42"],
        ),
    ],
)
def test_a_message_says_who_did_what_and_by_which_way(
    status: Status, action: str, line: str, buttons: list[str]
) -> None:
    """And offers what can be done next."""
    act = Entry(at=NOW, actor="@anna (17)", via="telegram", action=action, target="#42", detail=None, allowed=True)
    stands = group(status=status, muted_until=NOW.replace(hour=10, minute=0, second=0))

    message = messages.render(subject(stands, act=act), plain_settings(), NOW)

    assert message.plain.splitlines()[-1] == line
    assert [button.data for row in message.buttons for button in row] == buttons
    assert (message.news == f"#42 {line}") is (status != Status.OPEN)


def test_a_message_that_may_be_there_twice_says_so() -> None:
    """After an attempt whose end nobody saw."""
    assert "may repeat" in messages.render(subject(group(), may_repeat=True), plain_settings(), NOW).plain


def test_sound_comes_with_critical_only() -> None:
    """What is below it waits for a look at the phone."""
    loud = messages.render(subject(group(severity=Severity.CRITICAL)), plain_settings(), NOW)

    assert not loud.is_silent
    assert messages.render(subject(group()), plain_settings(), NOW).is_silent


def test_russian_reads_as_russian() -> None:
    """From the first message on."""
    message = messages.render(subject(group(), error=seen()), plain_settings(language="ru"), NOW)

    assert message.plain.startswith("🟠 ВАЖНО #42 новая")
    assert "сервис shop · окружение production · релиз v2" in message.plain


def test_times_are_those_of_the_team() -> None:
    """Nobody subtracts hours at night."""
    message = messages.render(subject(group()), plain_settings(timezone="Asia/Tokyo"), NOW)

    assert "last 18:26:53" in message.plain


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3, 1, 2, 2], "#1, #2, #3"),
        ([*range(1, 150), 200, 202, 203], "#1-149, #200, #202-203"),
        ([], ""),
    ],
)
def test_numbers_become_ranges_once_they_are_many(numbers: list[int], text: str) -> None:
    """A range names only what is in it."""
    assert messages.numbers(numbers) == text


@pytest.mark.parametrize("step", [1, 2])
def test_a_fold_names_every_group_and_fits(step: int) -> None:
    """The likely cause first, and no number left out, at the most that a fold takes."""
    groups = [group(9_000_000 + number * step, title="<&>" * 200, service="s" * 200) for number in range(249)]
    cause = group(7, severity=Severity.CRITICAL, category="database")

    message = messages.render(subject(*groups, cause, reason="fold"), plain_settings(), NOW)

    assert messages.units(message.html) <= messages.LIMIT
    assert "#7 " in message.plain.splitlines()[1]
    named: set[int] = set()
    for first, end in re.findall(r"#(\d+)(?:-(\d+))?", message.plain.splitlines()[-1]):
        named |= set(range(int(first), int(end or first) + 1))
    assert named == {7, *(one.number for one in groups)}
    assert not message.is_silent


HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.sampled_from(
        [
            "<b>", "</code>", "<script>alert(1)</script>", "&", "&amp;", "&#x3c;", "<a href='tg://user?id=1'>x</a>",
            "@all /resolve_1 https://evil.example", "\x00\x1b[31m", "\u202eabc", "{0.__class__}", "%s%n", "\ud800",
            "😀" * 3000, "&" * 5000, "<" * 5000, "\n" * 500, "a" * 100_000, "", " ",
        ]
    ),
)  # fmt: skip


@given(st.lists(HOSTILE, min_size=9, max_size=9), st.sampled_from(list(Status)), st.sampled_from(["en", "ru"]))
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_a_message(texts: list[str], status: Status, language: str) -> None:
    """A strict parser takes every message, and none is longer than Telegram allows."""
    kind, text, title, culprit, service, environment, release, trace, actor = texts
    frames = [{"module": kind, "function": text, "file": title, "line": culprit, "text": text, "in_app": True}] * 20
    hostile = group(
        title=title, culprit=culprit, service=service, environment=environment, exception_type=kind, status=status,
        count=10**15,
    )  # fmt: skip
    error = seen(message=text, exception_type=kind, release=release, trace_id=trace, context={"tocsin.frames": frames})
    action = {"acknowledged": "acknowledge", "resolved": "resolve"}.get(status, "mute")
    act = Entry(at=NOW, actor=actor, via="telegram", action=action, target="#42", detail=None, allowed=True)
    chosen = plain_settings(
        public_url="https://tocsin.example", trace_url="https://t.example/{trace_id}", language=language
    )
    for message in (
        messages.render(subject(hostile, error=error, act=act, may_repeat=True), chosen, NOW),
        messages.details(hostile, error, act, chosen, NOW),
        messages.group_list([hostile] * 15, True, chosen),
        messages.render(subject(*[hostile] * 12, reason="fold"), chosen, NOW),
        messages.say(text),
    ):
        if not message.plain.strip():
            continue
        shown = plain_text(message.html)
        assert max(messages.units(message.html), messages.units(message.plain)) <= messages.LIMIT
        assert "\x00" not in shown and "\u202e" not in shown and "\x1b" not in shown


@given(st.text(max_size=400), st.integers(0, 300))
@settings(deadline=None)
def test_a_cut_text_keeps_its_budget_and_its_begin(text: str, budget: int) -> None:
    """Cut before it is escaped, counted after."""
    fitted = messages.fit(text, budget)

    assert messages.units(messages.Piece(fitted).html) <= budget
