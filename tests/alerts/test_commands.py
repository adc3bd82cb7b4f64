"""What people may say to the bot, as a table; what is not in it gets a helpful line."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.alerts.samples import plain_settings
from tests.failed_jobs import failed_job
from tests.standin.telegram import plain_text
from tocsin import clock
from tocsin.alerts import commands, messages, silence
from tocsin.alerts.commands import Command, Misunderstood, parse, press
from tocsin.lifecycle import JobTrigger, Status
from tocsin.model import Batch, DependencyState, Instance, Job, Severity
from tocsin.settings import Settings
from tocsin.store import Store, errors, groups, jobs


def command(name: str, *numbers: int, **values: Any) -> Command:
    return Command(name=name, numbers=numbers, **values)


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("/help", command("help")),
        ("/start", command("start")),
        ("/start something", command("start")),
        ("/status", command("status")),
        ("/STATUS", command("status")),
        ("/status@Tocsin_bot", command("status")),
        ("/errors", command("errors")),
        ("/errors Critical", command("errors", severity=Severity.CRITICAL)),
        ("/error 42", command("error", 42)),
        ("/error #42", command("error", 42)),
        ("/error_42", command("error", 42)),
        ("/stats", command("stats")),
        ("/stats 48", command("stats", hours=48)),
        ("/stats 48h", command("stats", hours=48)),
        ("/instances", command("instances")),
        ("/memory", command("memory")),
        ("/resolve 42", command("resolve", 42)),
        ("/resolve_42", command("resolve", 42)),
        ("/resolve_42@tocsin_bot", command("resolve", 42)),
        ("/resolve 42 43 50-53", command("resolve", 42, 43, 50, 51, 52, 53)),
        ("/resolve #42, #43 42", command("resolve", 42, 43)),
        ("/reopen 1", command("reopen", 1)),
        ("/ack 1", command("ack", 1)),
        ("/acknowledge 1", command("ack", 1)),
        ("/ignore 1", command("ignore", 1)),
        ("/mute 42", command("mute", 42)),
        ("/mute 42 2h", command("mute", 42, span=timedelta(hours=2))),
        ("/mute 42 30m", command("mute", 42, span=timedelta(minutes=30))),
        ("/mute 42 43 1D", command("mute", 42, 43, span=timedelta(days=1))),
        ("/jobs", command("jobs")),
        ("/jobs 7", command("jobs", 7)),
        ("/job_7", command("jobs", 7)),
        ("/jobs done 7", command("jobs", 7, job_trigger=JobTrigger.DONE)),
        ("/jobs Done 7, #8 7", command("jobs", 7, 8, job_trigger=JobTrigger.DONE)),
        ("/jobs discard 7", command("jobs", 7, job_trigger=JobTrigger.DISCARD)),
        ("/jobs retry 7", command("jobs", 7, job_trigger=JobTrigger.RETRY)),
    ],
)
def test_what_is_understood(text: str, understood: Command) -> None:
    """Each command in the ways in which people write it."""
    assert parse(text, bot="tocsin_bot") == understood


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("/", "bot.not_understood"),
        ("/explode 1", "bot.not_understood"),
        ("/resolve;drop", "bot.not_understood"),
        ("/resolve", "bot.needs_number"),
        ("/mute 2h", "bot.needs_number"),
        ("/resolve 1;drop", "bot.bad_number"),
        ("/resolve all", "bot.bad_number"),
        ("/resolve -1", "bot.bad_number"),
        ("/resolve 1.5", "bot.bad_number"),
        ("/resolve 9-3", "bot.bad_number"),
        ("/resolve ٤٢", "bot.bad_number"),
        ("/resolve 4️⃣", "bot.bad_number"),
        ("/resolve 9999999999", "bot.bad_number"),
        ("/resolve 1-1000", "bot.too_many"),
        ("/resolve 1-90 200-290", "bot.too_many"),
        ("/error 1 2", "bot.too_many"),
        ("/mute 42 soon", "bot.bad_duration"),
        ("/mute 42 9999d", "bot.bad_duration"),
        ("/mute 42 0h", "bot.bad_duration"),
        ("/mute 42 -2h", "bot.bad_duration"),
        ("/errors awful", "bot.bad_severity"),
        ("/stats 0", "bot.bad_hours"),
        ("/stats 10000", "bot.bad_hours"),
        ("/stats forever", "bot.bad_hours"),
        ("/jobs done", "bot.bad_job"),
        ("/jobs 7 8", "bot.bad_job"),
        ("/jobs explode 7", "bot.bad_job"),
        ("/jobs done all", "bot.bad_job"),
        ("/jobs done 1-5", "bot.bad_job"),
        ("/jobs done " + ",".join(map(str, range(101))), "bot.too_many_jobs"),
    ],
)
def test_what_is_not_understood_is_explained(text: str, key: str) -> None:
    """With what would have been right, in both languages."""
    problem = parse(text)

    assert isinstance(problem, Misunderstood) and problem.key == key
    for language in ("en", "ru"):
        assert commands.explain(problem, plain_settings(language=language)).plain


@pytest.mark.parametrize("text", ["", "hello", "resolve 42", "/resolve@other_bot 42", " "])
def test_what_is_not_for_the_bot_is_left_alone(text: str) -> None:
    """People may talk among themselves, and to other bots."""
    assert parse(text, bot="tocsin_bot") is None


def test_an_answer_to_an_alert_needs_no_number() -> None:
    """A number that is written all the same is stronger."""
    assert parse("/resolve", answered=[7, 8]) == command("resolve", 7, 8)
    assert parse("/mute 2h", answered=[7]) == command("mute", 7, span=timedelta(hours=2))
    assert parse("/resolve 1", answered=[7]) == command("resolve", 1)


@pytest.mark.parametrize(
    ("data", "understood"),
    [
        ("res:42", command("resolve", 42)),
        ("ack:42", command("ack", 42)),
        ("mut:42", command("mute", 42)),
        ("reo:42", command("reopen", 42)),
        ("det:42", command("error", 42)),
        ("res:", None),
        ("res:42;x", None),
        ("drop:42", None),
        ("", None),
    ],
)
def test_what_buttons_mean(data: str, understood: Command | None) -> None:
    """Only what our own buttons send."""
    assert press(data) == understood


@given(st.text(max_size=3000) | st.text(max_size=200).map("/resolve ".__add__) | st.text(max_size=50).map("/".__add__))
def test_nothing_that_is_written_breaks_the_bot(text: str) -> None:
    """Whatever it is, it is understood, explained, or left alone; never a failure."""
    found = parse(text, answered=[1])

    if isinstance(found, Misunderstood):
        assert len(plain_text(commands.explain(found, plain_settings()).html)) < 500


async def ask(store: Store, text: str) -> str:
    parsed = parse(text)
    assert isinstance(parsed, Command)
    done = await store.write(
        commands.run, parsed, plain_settings(), by="@anna (17)", via="telegram", leader="me", now=clock.now()
    )
    return done.plain


async def test_commands_do_what_they_say(store: Store, error: Any) -> None:
    """By way of the same acts as everywhere else."""
    await store.write(errors.write_batch, Batch(entries=[error(), error("OSError")]), clock.now())

    assert await ask(store, "/resolve 1 2 3") == "#1 is resolved.\n#2 is resolved.\nThere is no #3."
    assert await ask(store, "/resolve 1") == "#1 was resolved already."
    assert await ask(store, "/ack 1") == "#1 is resolved; that cannot be ack."
    assert await ask(store, "/reopen 1") == "#1 is open."
    assert (await ask(store, "/mute 1 2h")).startswith("#1 is muted until ")

    one = await store.read(groups.by_number, 1)
    assert one.status == Status.MUTED
    assert one.muted_until is not None and one.muted_until - clock.now() > timedelta(hours=1, minutes=59)


async def put_jobs(store: Store, *told: Job) -> None:
    await store.write(errors.write_batch, Batch(entries=[], facts=[*told]), clock.now())


async def test_failed_jobs_are_listed_and_dealt_with(store: Store) -> None:
    """The same acts as by the API; a retry says where it can be done."""
    assert await ask(store, "/jobs") == "No failed job waits."
    await put_jobs(store, failed_job(), failed_job(function="shop.sync:run", message="50% away"))

    listed = (await ask(store, "/jobs")).splitlines()
    assert [line.split()[1:3] for line in listed[1:3]] == [["2", "shop.sync:run"], ["1", "shop.leads:push"]]
    assert listed[1].endswith("TimeoutError: 50% away")
    assert await ask(store, "/jobs retry 1") == "To run it again: tocsin jobs retry 1, in /srv/shop"
    assert await ask(store, "/jobs done 1 3") == "Job 1 is done.\nThere is no job 3."
    assert await ask(store, "/jobs done 1") == "Job 1 was done already."
    assert await ask(store, "/jobs discard 1") == "Job 1 is done; discard makes no sense."
    assert "1 " not in [line[2:4] for line in (await ask(store, "/jobs")).splitlines()]

    assert (await store.read(jobs.by_number, 1)).acted_by == "@anna (17)"


async def test_one_job_is_shown_with_all_that_a_person_needs(store: Store) -> None:
    await put_jobs(store, failed_job())

    shown = await ask(store, "/jobs 1")

    for part in (
        "job 1, failed",
        "shop.leads:push",
        "TimeoutError: no answer",
        '"kwargs": {"source": "site"}',
        "tries: 2",
    ):
        assert part in shown
    assert "tocsin jobs retry 1, in /srv/shop" in shown
    assert await ask(store, "/jobs 9") == "There is no job 9."


async def test_what_a_job_says_does_not_come_alive_in_a_chat(store: Store) -> None:
    """Names, links, markup and endless text, whoever has sent them."""
    evil = "<b>x</b> https://evil.example @everyone /resolve_1 \u202e" + "й" * 5000
    values = {"function": evil, "message": evil, "folder": evil, "service": evil, "exception_type": evil}
    await put_jobs(
        store, *(failed_job(**values, arguments={"args": [evil], "kwargs": {evil: evil}}) for _ in range(20))
    )

    for text in ("/jobs", "/jobs 1", "/jobs retry 1"):
        parsed = parse(text)
        assert isinstance(parsed, Command)
        by = {"by": "@anna (17)", "via": "telegram", "leader": "me"}
        said = await store.write(commands.run, parsed, plain_settings(), **by, now=clock.now())
        assert messages.units(said.html) <= messages.LIMIT
        assert "<b>x" not in said.html
        assert "\u202e" not in said.plain


def test_only_what_changes_something_needs_the_right_to() -> None:
    assert [
        bool(getattr(parse(text), "acts", None)) for text in ("/jobs", "/jobs 7", "/jobs done 7", "/jobs discard 7")
    ] == [
        False,
        False,
        True,
        True,
    ]


async def test_questions_are_answered(store: Store, error: Any) -> None:
    """What is open, how things stand, one group, how many."""
    assert await ask(store, "/errors") == "Nothing is open."
    await store.write(
        errors.write_batch,
        Batch(entries=[error(timestamp=clock.now()), error("OSError", severity=Severity.CRITICAL)]),
        clock.now(),
    )

    listed = await ask(store, "/errors")
    assert "#1 " in listed and "#2 " in listed
    assert "#1 " not in await ask(store, "/errors critical")
    assert "KeyError" in await ask(store, "/error 1")
    assert await ask(store, "/error 9") == "There is no #9."
    status = await ask(store, "/status")
    assert "open: 2" in status and "errors in the last hour: 1" in status and "leader: this process" in status
    assert "Last 24 h: 1 errors" in await ask(store, "/stats")
    assert "/resolve 42" in await ask(store, "/help")


async def test_memory_is_told_the_fullest_first(store: Store) -> None:
    """Of the living alone; a process that has told no limit or no trend is told with what it has."""
    assert await ask(store, "/memory") == "No process has told of its memory yet."
    mb = 2**20
    await store.write(
        errors.write_batch,
        Batch(
            entries=[],
            instances=[
                told("a", memory_bytes=300 * mb),
                told("b", memory_bytes=120 * mb, memory_limit_bytes=1024 * mb, memory_trend=-3 * mb),
                told("c", memory_bytes=98 * mb, memory_limit_bytes=120 * mb, memory_trend=412 * mb),
                told("d", memory_bytes=500 * mb, ended_at=clock.now(), is_alive=False),
                told("e"),
            ],
        ),
        clock.now(),
    )

    assert (await ask(store, "/memory")).splitlines() == [
        "Memory, the fullest first:",
        "c web/7 98 of 120 MB (81 %), +412 MB an hour",
        "b web/7 120 of 1,024 MB (11 %), -3 MB an hour",
        "a web/7 300 MB",
    ]


async def test_processes_are_told_the_silent_first(store: Store) -> None:
    """Of the living, with what each has said of itself."""
    assert await ask(store, "/instances") == "No process has told of itself yet."
    mb = 2**20
    alive = [
        told("a", memory_bytes=98 * mb, memory_limit_bytes=120 * mb, active_requests=3, loop_lag_ms=40),
        told("b", memory_bytes=0, active_requests=0, is_shutting_down=True, spool_bytes=7 * mb),
        told("c", ended_at=clock.now(), is_alive=False),
        told("<d>", beats_every_s=12.0, seen_at=clock.now() - timedelta(minutes=5)),
    ]
    await store.write(errors.write_batch, Batch(entries=[], instances=alive), clock.now())
    await silence.Watch(Settings(database_url="sqlite:///unused"), steady_s=3600).look(store)

    head, first, *rest = (await ask(store, "/instances")).splitlines()
    assert head == "Processes, the silent first:"
    assert first.startswith("<d> web/7 silent since ")
    assert sorted(rest) == [
        "a web/7 98 of 120 MB (81 %) · requests: 3 · loop late by 40 ms",
        "b web/7 stopping · waiting: 7 MB",
    ]
    assert f"instances: 2\n  {first}" in await ask(store, "/status")


def told(service: str, **values: Any) -> Instance:
    return Instance(
        id=service,
        service=service,
        environment="production",
        release=None,
        host="web",
        pid=7,
        started_at=clock.now(),
        python_version=None,
        **values,
    )


async def test_status_names_what_services_are_without(store: Store) -> None:
    """By the worst that a living process says."""
    now = clock.now()
    running = [
        Instance(id=one, service="shop", environment="production", release=None, host="h", pid=1, started_at=now)
        for one in ("a", "b")
    ]
    told = [
        DependencyState(
            name=name,
            is_away=is_away,
            is_optional=True,
            since=now - timedelta(minutes=1),
            service="shop",
            environment="production",
            instance_id=instance_id,
        )
        for instance_id, name, is_away in (("a", "redis", True), ("b", "redis", False), ("b", "<b>crm", False))
    ]
    await store.write(errors.write_batch, Batch(entries=[], instances=running, facts=[*told]), now)

    status = await ask(store, "/status")

    assert "redis: away since " in status and "crm" not in status
