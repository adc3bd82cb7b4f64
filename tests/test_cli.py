"""The command line: what people type, what they read, and the exit codes that scripts rely on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ErrorFactory, mostly
from tests.standin.telegram import TOKEN, TelegramStandIn
from tests.waiting import eventually
from tocsin import cli, clock
from tocsin.api import create_app
from tocsin.exporter.spool import Spool, acknowledge
from tocsin.lifecycle import Status
from tocsin.model import Batch, ErrorRecord, Severity
from tocsin.settings import Settings
from tocsin.store import audit, groups, open_store
from tocsin.store.errors import write_batch

pytestmark = pytest.mark.usefixtures("clean_environment")


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Tocsin = Callable[..., Answer]
Stored = Callable[..., None]


@pytest.fixture
def tocsin(capsys: pytest.CaptureFixture[str]) -> Tocsin:
    """Runs a command as the shell would."""

    def run(*argv: str) -> Answer:
        try:
            code = cli.main(argv)
        except SystemExit as end:  # argparse ends by itself
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
def here(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The settings name a database, of each kind in turn."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", database_url)
    return database_url


@pytest.fixture
def stored(here: str) -> Stored:
    """Errors in that database; each new type is a new group."""

    def store_them(*errors: ErrorRecord) -> None:
        store = open_store(here)
        store.write_now(write_batch, Batch(entries=[*errors]), clock.now())
        store.close_now()

    return store_them


def status_of(database_url: str, number: int) -> Status:
    store = open_store(database_url)
    try:
        return store.read_now(groups.by_number, number).status
    finally:
        store.close_now()


# Looking


def test_errors_are_listed_newest_first_with_their_group(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    """The number in the list is the one that all other commands take."""
    stored(
        error("KeyError", timestamp=datetime(2026, 3, 1, 12, tzinfo=UTC)),
        error("ValueError", timestamp=datetime(2026, 3, 2, 12, tzinfo=UTC), count=7),
    )

    answer = tocsin("errors")

    lines = answer.out.splitlines()
    assert answer.code == 0
    assert lines[1].startswith("2026-03-02 12:00:00  #2")
    assert "7" in lines[1]
    assert lines[2].startswith("2026-03-01 12:00:00  #1")


def test_errors_as_json_have_the_shape_of_the_api(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    """Scripts may move between the two."""
    one = error("KeyError")
    stored(one)

    found = tocsin("errors", "--json").json

    assert {"success", "count", "errors", "next"} == set(found)
    assert found["success"] is True
    assert found["count"] == 1
    assert found["errors"][0]["id"] == one.id
    assert found["errors"][0]["timestamp"] == "2026-03-14T09:26:53.589Z"


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (("errors",), "/errors"),
        (("errors", "--severity", "high", "--limit", "1"), "/errors?severity=high&limit=1"),
        (("errors", "--groups"), "/groups"),
        (("show", "1"), "/groups/1"),
        (("stats", "--hours", "3"), "/errors/stats?hours=3"),
        (("alerts",), "/alerts"),
    ],
)
@mostly("sqlite")
def test_json_is_what_the_api_answers(
    command: tuple[str, ...], path: str, tocsin: Tocsin, stored: Stored, here: str, error: ErrorFactory
) -> None:
    """Key for key, value for value."""
    stored(error("KeyError", context={"http.route": "/orders"}), error("ValueError", timestamp=clock.now()))

    assert tocsin(*command, "--json").json == asyncio.run(answer_of_the_api(here, path))


async def answer_of_the_api(database_url: str, path: str) -> Any:
    store = open_store(database_url)
    app = create_app(Settings(database_url=database_url, token="full-access"), store=store)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as api:
        answer = await api.get(f"/api/debug{path}", headers={"Authorization": "Bearer full-access"})
    await store.close()
    assert answer.status_code == 200
    return answer.json()


def test_a_list_goes_on_where_it_ended(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    """`next` of one answer is `--before` of the following one."""
    stored(*(error("KeyError", message=str(at)) for at in range(5)))

    first = tocsin("errors", "--limit", "3", "--json").json
    second = tocsin("errors", "--limit", "3", "--before", first["next"], "--json").json

    assert [len(first["errors"]), len(second["errors"]), second["next"]] == [3, 2, None]
    assert not {one["id"] for one in first["errors"]} & {one["id"] for one in second["errors"]}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ((), {"KeyError", "ValueError"}),
        (("--severity", "critical"), {"ValueError"}),
        (("--category", "unknown"), {"KeyError"}),
        (("--service", "shop"), {"KeyError"}),
        (("--environment", "staging"), {"ValueError"}),
        (("-q", "PHONE"), {"KeyError"}),
        (("--group", "#2"), {"ValueError"}),
        (("--status", "resolved"), set()),
        (("--status", "unresolved"), {"KeyError", "ValueError"}),
    ],
)
@mostly("sqlite")
def test_errors_can_be_filtered(
    filters: tuple[str, ...], expected: set[str], tocsin: Tocsin, stored: Stored, error: ErrorFactory
) -> None:
    """The filters of the API, by the same names."""
    other = {"severity": Severity.CRITICAL, "category": "database", "service": "crm", "environment": "staging"}
    stored(error("KeyError"), error("ValueError", message="gone", **other))

    found = tocsin("errors", "--json", *filters).json

    assert {one["exception_type"] for one in found["errors"]} == expected


def test_groups_are_listed_by_status(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    """`errors --groups` is the team's list of what to do."""
    stored(error("KeyError"), error("ValueError"))
    tocsin("resolve", "1")

    answer = tocsin("errors", "--groups", "--status", "open", "--json")

    assert [group["number"] for group in answer.json["groups"]] == [2]
    assert "#2" in tocsin("errors", "--groups").out


def test_show_tells_all_that_is_known_of_a_group(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    """Found by its number, by its number with a hash, or by the id of one of its errors."""
    one = error("KeyError", context={"http.route": "/orders"}, release="2.4.0")
    stored(one)
    tocsin("ack", "1")

    for name in ("1", "#1", one.id):
        answer = tocsin("show", name)
        assert answer.code == 0
        for part in (
            "KeyError: 'phone'",
            "shop.orders in create_order",
            "/orders",
            "2.4.0",
            "Traceback",
            "acknowledge",
        ):
            assert part in answer.out


def test_stats_add_up_what_happened(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    """A storm that was summed up counts as what it was."""
    lately = clock.now() - timedelta(minutes=1)
    stored(error("KeyError", timestamp=lately, count=99), error("ValueError", timestamp=lately))

    answer = tocsin("stats", "--hours", "2", "--json").json

    assert (answer["period"], answer["stats"]["total"], answer["stats"]["unresolved"]) == ("2 hours", 100, 100)
    assert "100 errors within 24 h" in tocsin("stats").out


def test_without_errors_the_commands_say_so(tocsin: Tocsin, here: str) -> None:
    """Nothing to show is no failure."""
    said = [tocsin(*command) for command in (("errors",), ("errors", "--groups"), ("alerts",), ("stats",))]

    assert [answer.code for answer in said] == [0, 0, 0, 0]
    assert [answer.out.splitlines()[0] for answer in said[:3]] == ["no errors", "no groups", "no alerts"]


def test_an_empty_database_is_made_ready(
    tocsin: Tocsin, empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks first meets no traceback for want of a table."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", empty_postgres_url)

    answer = tocsin("errors")

    assert (answer.code, answer.out) == (0, "no errors\n")


def test_looking_makes_no_file(tocsin: Tocsin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped path is said, and not taken for a database without errors."""
    path = tmp_path / "no" / "such.db"
    monkeypatch.setenv("TOCSIN_DATABASE_URL", f"sqlite:///{path}")

    answer = tocsin("errors")

    assert answer.code == 1
    assert str(path) in answer.err
    assert not path.parent.exists()


@pytest.mark.parametrize("span", ["0s", "999999w"])
def test_a_span_that_is_none_is_said_in_a_line(tocsin: Tocsin, span: str) -> None:
    answer = tocsin("mute", "1", span)

    assert answer.code == 2
    assert "such as 30m" in answer.err and len(answer.err.splitlines()) == 1


def test_a_wrong_word_is_answered_in_plain_words(tocsin: Tocsin) -> None:
    answer = tocsin("errors", "--severity", "purple")

    assert answer.code == 2
    assert "low" in answer.err and "Severity" not in answer.err


def test_nothing_that_was_stored_steers_the_terminal(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    """An attacker's message cannot clear the screen or turn the text round."""
    evil = "\x1b[2J\x07 \u202eevil\r\n"
    stored(error("KeyError", message=evil, stack=f"Traceback\n{evil}", title=evil, context={evil: evil}, service=evil))

    shown = (
        tocsin("errors").out + tocsin("errors", "--groups").out + tocsin("show", "1").out + tocsin("ignore", "1").out
    )

    assert "evil" in shown
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\r"}


# Acting


def test_resolve_takes_numbers_and_ranges(tocsin: Tocsin, stored: Stored, here: str, error: ErrorFactory) -> None:
    """And it says so of each; the rows follow even when no server runs."""
    stored(*(error(f"Error{at}") for at in range(1, 7)))

    answer = tocsin("resolve", "1", "#2", "4-5")

    assert answer.code == 0
    assert [line.split("  ")[0] for line in answer.out.splitlines()] == [f"#{n} is resolved" for n in (1, 2, 4, 5)]
    assert [status_of(here, number) for number in (1, 2, 3)] == [Status.RESOLVED, Status.RESOLVED, Status.OPEN]
    assert tocsin("errors", "--status", "unresolved", "--json").json["count"] == 2


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("resolve", "1"), Status.RESOLVED),
        (("ack", "1"), Status.ACKNOWLEDGED),
        (("mute", "1"), Status.MUTED),
        (("mute", "1", "2h"), Status.MUTED),
        (("mute", "1", "--for", "30m"), Status.MUTED),
        (("ignore", "1"), Status.IGNORED),
        (("reopen", "1"), Status.OPEN),
    ],
)
@mostly("sqlite")
def test_a_person_acts_on_a_group_and_the_audit_knows(
    command: tuple[str, ...], expected: Status, tocsin: Tocsin, stored: Stored, here: str, error: ErrorFactory
) -> None:
    """By the command line as by the bot and the page."""
    stored(error("KeyError"))

    answer = tocsin(*command, "--json")

    assert answer.code == 0
    assert answer.json["group"]["status"] == expected == status_of(here, 1)
    store = open_store(here)
    newest = store.read_now(audit.of_target, "#1")[0]
    store.close_now()
    assert newest.via == "cli"
    assert newest.actor.startswith("cli: ")


def test_a_mute_lasts_as_long_as_was_said(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    stored(error("KeyError"))

    until = tocsin("mute", "1", "2h", "--json").json["group"]["muted_until"]

    assert abs(datetime.fromisoformat(until) - clock.now() - timedelta(hours=2)) < timedelta(minutes=1)


def test_a_number_that_is_not_there_fails_and_stops_none_of_the_others(
    tocsin: Tocsin, stored: Stored, here: str, error: ErrorFactory
) -> None:
    stored(error("KeyError"))

    answer = tocsin("resolve", "99", "1")

    assert answer.code == 1
    assert "there is no group #99" in answer.err
    assert status_of(here, 1) == Status.RESOLVED


def test_what_the_lifecycle_forbids_fails_with_its_reason(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    stored(error("KeyError"))
    tocsin("resolve", "1")

    answer = tocsin("ack", "1")

    assert (answer.code, "a group that is resolved cannot take acknowledge" in answer.err) == (1, True)


# Usage


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("setup",),
        ("bogus",),
        ("errors", "--severity", "loud"),
        ("errors", "--limit", "0"),
        ("errors", "--limit", "many"),
        ("errors", "--before", "tampered"),
        ("errors", "--status", "open"),
        ("errors", "--groups", "--status", "unresolved"),
        ("errors", "--sev", "high"),
        ("resolve",),
        ("resolve", "all"),
        ("resolve", "9-1"),
        ("resolve", "1-999999"),
        ("mute", "2h"),
        ("mute", "1", "--for", "long"),
        ("stats", "--hours", "-1"),
        ("serve", "--port", "99999"),
        ("demo", "--seconds", "1"),
        ("run",),
        ("run", "--bogus", "--", "true"),
    ],
)
def test_wrong_usage_is_exit_2_and_a_line_of_help(command: tuple[str, ...], tocsin: Tocsin, here: str) -> None:
    """Never a traceback, and nothing on stdout but help."""
    answer = tocsin(*command)

    assert answer.code == 2
    assert answer.err or "usage: tocsin" in answer.out
    assert "Traceback" not in answer.err


def test_every_command_has_help_that_ends_well(tocsin: Tocsin) -> None:
    top = tocsin("--help")
    names = [*cli.command_names()]

    assert top.code == 0
    assert len(names) == 19
    for name in names:
        answer = tocsin(name, "--help")
        assert answer.code == 0, name
        assert answer.out.startswith(f"usage: tocsin {name}"), name
        assert name in top.out


def test_wrong_settings_are_all_named_at_once(tocsin: Tocsin, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each: name, value, what would be right, and the nearest name for one that is unknown."""
    monkeypatch.setenv("TOCSIN_RETENTION_DAYS", "soon")
    monkeypatch.setenv("TOCSIN_TELEGRAM_TOKN", "1:secret-of-the-bot")
    monkeypatch.setenv("TOCSIN_SMTP_URL", "ftp://user:hunter2@host")
    monkeypatch.setenv("TOCSIN_EMAIL_TO", "anna@example.com")

    answer = tocsin("errors")

    lines = answer.err.splitlines()
    assert answer.code == 2
    assert len(lines) == 3
    assert any("TOCSIN_RETENTION_DAYS: 'soon' is wrong: give a whole number of days" in line for line in lines)
    assert any("TOCSIN_TELEGRAM_TOKN" in line and "did you mean TOCSIN_TELEGRAM_TOKEN?" in line for line in lines)
    assert "secret" not in answer.err
    assert "hunter2" not in answer.err


@pytest.mark.parametrize("command", [("errors",), ("show", "1"), ("resolve", "1"), ("stats",), ("migrate",)])
def test_a_database_that_is_away_is_said_in_one_line(
    command: tuple[str, ...], tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", f"postgresql://tocsin:hunter2@127.0.0.1:{closed_port()}/tocsin")

    answer = tocsin(*command)

    assert answer.code == 1
    assert "the database cannot be reached: the connection to 127.0.0.1:" in answer.err
    assert "hunter2" not in answer.err
    assert "Traceback" not in answer.err


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_migrate_says_what_it_does(tocsin: Tocsin, empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", empty_database_url)

    first, second = tocsin("migrate"), tocsin("migrate")

    assert (first.code, second.code) == (0, 0)
    assert "migrating the database from none" in first.out
    assert "migrating" not in second.out
    assert "is up to date" in second.out


# Check


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["resolv", "1"], "tocsin: there is no command 'resolv'; did you mean resolve?; try `tocsin --help`"),
        (["help"], "tocsin: there is no command 'help'; try `tocsin --help`"),
        (["errors", "shop"], "tocsin errors: there is no place for 'shop'; try `tocsin errors --help`"),
        (["errors", "--since", "1h"], "tocsin errors: there is no place for '--since 1h'; try `tocsin errors --help`"),
        (["mute", "1", "-2h"], "tocsin mute: there is no place for '-2h'; try `tocsin mute --help`"),
        (["mute", "1", "banana"], "tocsin: banana: give a length of time such as 30m, 2h or 1d, at most a year"),
        (["mute", "1", "2y"], "tocsin: 2y: give a length of time such as 30m, 2h or 1d, at most a year"),
        (["mute", "2h"], "tocsin: 2h: give the number of a group, such as 42"),
        (["show", "x"], "tocsin: x: give the number of a group, such as 42, or the id of an error"),
        (["resolve", "1.5"], "tocsin: 1.5: give the number of a group, such as 42"),
    ],
)
def test_wrong_usage_says_what_would_be_right(
    command: list[str], said: str, tocsin: Tocsin, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)

    answer = tocsin(*command)

    assert (answer.code, answer.out, answer.err) == (2, "", f"{said}\n")


def test_setup_says_which_address_cannot_be_reached(
    tocsin: Tocsin, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("TOCSIN_TELEGRAM_TOKEN", "1:AAsecretsecretsecret")
    monkeypatch.setenv("TOCSIN_TELEGRAM_API_URL", f"http://127.0.0.1:{closed_port()}/bot")

    answer = tocsin("setup", "telegram")

    assert answer.code == 1
    assert answer.err.startswith("tocsin: http://127.0.0.1:")
    assert "TOCSIN_TELEGRAM_PROXY" in answer.err and "AAsecret" not in answer.err


def test_check_is_content_when_all_is_well(tocsin: Tocsin, here: str) -> None:
    """A line for each part; what is not set up is no failure."""
    answer = tocsin("check")

    assert answer.code == 0, answer.out
    for part in ("ok   settings", "ok   database", "ok   access", "ok   clock", "off  telegram", "ok   spool"):
        assert part in answer.out


def test_check_knows_a_database_that_is_away(tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", f"postgresql://tocsin:hunter2@127.0.0.1:{closed_port()}/tocsin")

    answer = tocsin("check")

    assert answer.code == 1
    assert "FAIL database" in answer.out
    assert "TOCSIN_DATABASE_URL" in answer.out
    assert "hunter2" not in answer.out


def test_check_knows_a_database_that_nobody_migrated(
    tocsin: Tocsin, empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", empty_postgres_url)

    answer = tocsin("check")

    assert answer.code == 1
    assert "run `tocsin migrate`" in answer.out


def test_a_table_that_somebody_dropped_is_named_and_made_anew(tocsin: Tocsin, here: str) -> None:
    """The database is there: who reads that it cannot be reached looks for the fault at the wrong end."""
    place = "tocsin." if here.startswith("postgresql") else ""
    store = open_store(here)
    store.write_now(lambda connection: connection.exec_driver_sql(f"DROP TABLE {place}alerts"))
    store.close_now()

    looked, checked, mended, after = tocsin("alerts"), tocsin("check"), tocsin("migrate"), tocsin("check")

    assert (looked.code, checked.code, mended.code, after.code) == (1, 1, 0, 0), after.out
    assert looked.err == f"tocsin: the table {place}alerts is missing: `tocsin check` says what to do\n"
    assert f": missing: {place}alerts; restore what is missing from a backup, or have `tocsin migrate`" in checked.out
    assert "the table alerts was missing: it is made anew, empty" in mended.out


def test_check_says_how_to_begin_anew_without_the_table_of_errors(tocsin: Tocsin, here: str) -> None:
    store = open_store(here)
    store.write_now(lambda connection: connection.exec_driver_sql("DROP TABLE error_logs"))
    store.close_now()

    checked, mended = tocsin("check"), tocsin("migrate")

    assert (checked.code, mended.code) == (1, 1)
    assert ": missing: error_logs; restore what is missing from a backup, or " in checked.out
    assert "`tocsin check` says how" in mended.err


def test_check_knows_a_table_that_is_open(tocsin: Tocsin, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some hosts everyone may read a table without row level security."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", postgres_url)
    store = open_store(postgres_url)
    store.write_now(
        lambda connection: connection.exec_driver_sql("ALTER TABLE tocsin.audit DISABLE ROW LEVEL SECURITY")
    )
    store.close_now()

    answer = tocsin("check")

    assert answer.code == 1
    assert "FAIL access: open to others: tocsin.audit" in answer.out
    assert "ALTER TABLE tocsin.audit ENABLE ROW LEVEL SECURITY" in answer.out


def test_check_knows_a_file_that_others_can_read(
    tocsin: Tocsin, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)
    (tmp_path / "tocsin.db").chmod(0o644)

    answer = tocsin("check")

    assert answer.code == 1
    assert f"chmod 600 {tmp_path / 'tocsin.db'}" in answer.out


def test_check_knows_a_spool_that_cannot_be_written(
    tocsin: Tocsin, here: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("TOCSIN_SPOOL_DIR", str(tmp_path / "a-file" / "spool"))

    answer = tocsin("check")

    assert answer.code == 1
    assert "FAIL spool" in answer.out


@pytest.mark.parametrize("how", ["database", "endpoint", "away"])
def test_check_knows_errors_that_wait_in_the_spool(
    how: str, tocsin: Tocsin, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a server or a service that was killed: how many, for how long, and who stores them; not what is stored."""
    away = f"postgresql://u:hunter2@127.0.0.1:{closed_port()}/tocsin"
    if how == "endpoint":
        monkeypatch.setenv("TOCSIN_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    else:
        monkeypatch.setenv("TOCSIN_DATABASE_URL", away if how == "away" else sqlite_url)
    left = clock.now() - timedelta(hours=3, minutes=5)
    spool = Spool(tmp_path / "spool", 2**30, {"resource": {"service.name": "tocsin"}, "started_ns": 0})
    lines = [line_of(kind, left) for kind in ("error", "error", "repeats", "error")]
    spool.append_all(lines)
    (segment,) = spool.segments()
    position = segment.stat().st_size - sum(map(len, lines[1:]))
    if how == "endpoint":
        acknowledge(spool.folder, segment.stem, position)
    elif how == "database":
        store = open_store(sqlite_url)
        store.write_now(write_batch, Batch(entries=[], segment=segment.stem, start=0, position=position), clock.now())
        store.close_now()
    spool.close(everything_stored=False)

    (waiting,) = (one for one in tocsin("check", "--json").json["checks"] if one["name"] == "waiting")

    count = "up to 3 errors wait" if how == "away" else "2 errors wait"
    assert waiting["state"] == "FAIL"
    assert waiting["what"] == f"{count} in {spool.folder}, the oldest for 3 hours"
    assert ("start `tocsin serve` with this TOCSIN_SPOOL_DIR" in waiting["mend"]) == (how != "endpoint")


def line_of(kind: str, moment: datetime) -> bytes:
    return b'{"v":1,"kind":"%s","time_unix_nano":%d}\n' % (kind.encode(), moment.timestamp() * 1e9)


def test_check_does_not_look_at_something_else_than_was_meant(
    tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the default in the place of a wrong address, all would be well."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TOCSIN_DATABASE_URL", "postgres//u:hunter2@h/d")

    answer = tocsin("check")

    assert answer.code == 1
    assert "FAIL settings: TOCSIN_DATABASE_URL: give " in answer.out
    assert "off  database: not looked at, since TOCSIN_DATABASE_URL is wrong" in answer.out
    assert "hunter2" not in answer.out


def test_check_says_what_is_wrong_with_a_file_and_nothing_else(
    tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", f"sqlite:///{tmp_path}")

    answer = tocsin("check")

    (line,) = (line for line in answer.out.splitlines() if " database: " in line)
    assert line.endswith(f"has to name a file, such as sqlite:///{tmp_path}/tocsin.db")


def test_check_knows_an_api_of_telegram_that_is_away(
    tocsin: Tocsin, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which part, why, and what to do, and never the token."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("TOCSIN_TELEGRAM_TOKEN", "1:AAsecretsecretsecret")
    monkeypatch.setenv("TOCSIN_TELEGRAM_API_URL", f"http://127.0.0.1:{closed_port()}/bot")

    answer = tocsin("check", "--json")

    telegram = next(one for one in answer.json["checks"] if one["name"] == "telegram")
    assert (answer.code, answer.json["success"], telegram["state"]) == (1, False, "FAIL")
    assert "cannot be reached" in telegram["what"]
    assert "TOCSIN_TELEGRAM_PROXY" in telegram["mend"]
    assert "AAsecret" not in answer.out


ANNA, TEAM = 17, -100123


@pytest.fixture
def telegram(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TelegramStandIn]:
    """A Telegram that the settings lead to, with a bot and no chat yet."""
    with TelegramStandIn() as api:
        monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)
        monkeypatch.setenv("TOCSIN_TELEGRAM_API_URL", api.api_url)
        monkeypatch.setenv("TOCSIN_TELEGRAM_TOKEN", TOKEN)
        yield api


def telegram_lines(answer: Answer) -> list[str]:
    return [line for line in answer.out.splitlines() if " telegram: " in line]


def test_check_asks_the_bot_for_its_name_and_its_chats_and_sends_nothing(
    tocsin: Tocsin, telegram: TelegramStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_TELEGRAM_CHAT_IDS", f"{ANNA},{TEAM}")

    answer = tocsin("check")

    assert answer.code == 0, answer.out
    name, anna, team = telegram_lines(answer)
    assert name == "ok   telegram: the bot is @tocsin_test_bot"
    assert anna.startswith(f"ok   telegram: chat {ANNA}")
    assert team.startswith(f"ok   telegram: chat {TEAM}")
    assert telegram.messages == []


def test_check_knows_a_bot_without_chats(tocsin: Tocsin, telegram: TelegramStandIn) -> None:
    answer = tocsin("check")

    assert answer.code == 1
    assert telegram_lines(answer)[1].startswith("FAIL telegram: no chat gets alerts; run `tocsin setup telegram`")


def test_check_knows_a_chat_that_the_bot_is_not_in(
    tocsin: Tocsin, telegram: TelegramStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_TELEGRAM_CHAT_IDS", str(TEAM))
    telegram.refuse(400, "Bad Request: chat not found")

    answer = tocsin("check")

    assert answer.code == 1
    assert f"FAIL telegram: chat {TEAM}" in answer.out
    assert "add @tocsin_test_bot to it" in answer.out


def test_check_knows_a_wrong_token(tocsin: Tocsin, telegram: TelegramStandIn) -> None:
    telegram.token = "another"

    answer = tocsin("check")

    assert answer.code == 1
    (line,) = telegram_lines(answer)
    assert line.startswith("FAIL telegram: Telegram does not know the bot's token")
    assert "@BotFather" in line


def test_setup_writes_chat_and_person_into_the_env_file(
    tocsin: Tocsin, telegram: TelegramStandIn, tmp_path: Path
) -> None:
    """Other lines stay, and nobody else can read it."""
    (tmp_path / ".env").write_text("# of the service\nSHOP_KEY=x\nTOCSIN_TELEGRAM_CHAT_IDS=5\n")
    telegram.say("/start", chat_id=ANNA, user_id=ANNA)

    answer = tocsin("setup", "telegram")

    assert answer.code == 0, answer.err
    assert (tmp_path / ".env").read_text().splitlines() == [
        "# of the service",
        "SHOP_KEY=x",
        "TOCSIN_TELEGRAM_CHAT_IDS=5,17",
        "TOCSIN_TELEGRAM_USER_IDS=17",
    ]
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert [message.chat_id for message in telegram.messages] == [ANNA]


def test_setup_needs_a_token_first(tocsin: Tocsin, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)

    answer = tocsin("setup", "telegram")

    assert (answer.code, "set TOCSIN_TELEGRAM_TOKEN first" in answer.err) == (2, True)


def test_a_test_alert_reaches_every_chat_and_names_those_that_refuse(
    tocsin: Tocsin, telegram: TelegramStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_TELEGRAM_CHAT_IDS", f"{ANNA},{TEAM}")

    fine = tocsin("test-alert")
    telegram.refuse()
    bad = tocsin("test-alert")

    assert (fine.code, fine.out.splitlines()) == (0, [f"ok   telegram {ANNA}", f"ok   telegram {TEAM}"])
    assert {message.chat_id for message in telegram.messages} == {ANNA, TEAM}
    assert bad.code == 1
    assert bad.out.count("FAIL telegram") == 2


def test_check_names_what_is_wrong_with_the_settings(
    tocsin: Tocsin, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And looks at everything else all the same."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("TOCSIN_LANGUAGE", "fr")

    answer = tocsin("check")

    assert answer.code == 1
    assert "FAIL settings: TOCSIN_LANGUAGE: 'fr' is wrong: give one of en, ru" in answer.out
    assert "ok   database" in answer.out


def test_the_list_of_settings_shows_values_and_no_secret(
    tocsin: Tocsin, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_TOKEN", "a-secret-token")
    monkeypatch.setenv("TOCSIN_QUIET_HOURS", "23:00-08:00")
    monkeypatch.setenv("TOCSIN_TELEGRAM_CHAT_IDS", "17,-100")

    rows = {row["name"]: row for row in tocsin("check", "--settings", "--json").json["settings"]}

    assert rows["TOCSIN_QUIET_HOURS"]["value"] == "23:00-08:00"
    assert rows["TOCSIN_TELEGRAM_CHAT_IDS"]["value"] == "17,-100"
    assert rows["TOCSIN_RETENTION_DAYS"]["default"] == "30"
    assert rows["TOCSIN_TOKEN"]["value"] == "***"
    assert "a-secret-token" not in tocsin("check", "--settings").out


# Programs


def test_run_hands_everything_after_the_program_on(tmp_path: Path, sqlite_url: str) -> None:
    """Options of the program are its own, even those that tocsin knows too."""
    show = "import sys; print(sys.argv[1:])"

    ended = shell(tmp_path, sqlite_url, "run", "--", sys.executable, "-c", show, "--traces", "--", "--help", "-x")

    assert (ended.returncode, ended.stdout) == (0, "['--traces', '--', '--help', '-x']\n")


def test_run_gives_the_exit_code_of_the_program(tmp_path: Path, sqlite_url: str) -> None:
    ended = shell(tmp_path, sqlite_url, "run", sys.executable, "-c", "raise SystemExit(7)")

    assert ended.returncode == 7


def test_run_starts_a_program_whatever_is_wrong_with_the_settings(tmp_path: Path, sqlite_url: str) -> None:
    """One line for each problem, and the program runs."""
    ended = shell(tmp_path, sqlite_url, "run", sys.executable, "-c", "print('up')", TOCSIN_RETENTION_DAY="30")

    assert (ended.returncode, ended.stdout) == (0, "up\n")
    assert "did you mean TOCSIN_RETENTION_DAYS?" in ended.stderr


def test_run_stores_what_an_unchanged_program_raises(tmp_path: Path, sqlite_url: str) -> None:
    """From a traceback to a row: at its end, or on a busy machine by whoever starts next."""
    shell(tmp_path, sqlite_url, "run", sys.executable, "-c", "{}['phone']", TOCSIN_SERVICE="shop")

    store = open_store(sqlite_url)
    with program(tmp_path, sqlite_url, "run", sys.executable, "-c", "input()"):
        eventually(lambda: bool(store.read_now(groups.list_groups)[0]), 30)
    group = store.read_now(groups.by_number, 1)
    store.close_now()
    assert (group.exception_type, group.service, group.severity) == ("KeyError", "shop", Severity.CRITICAL)


@pytest.mark.parametrize("command", ["serve", "demo", "test-alert"])
def test_a_command_without_its_libraries_says_what_to_install(command: str, tmp_path: Path, sqlite_url: str) -> None:
    """A service's installation has no web server and no bot."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('uvicorn', 'starlette', 'apscheduler', 'httpcore'), None));"
        "from tocsin.cli import main; sys.exit(main([sys.argv[1]]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, command],
        cwd=tmp_path,
        env=environment(tmp_path, sqlite_url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(
        rf"tocsin: {command} needs (uvicorn|starlette|apscheduler|httpcore), which is not installed: pip install \S+\n",
        ended.stderr,
    )


def test_serve_refuses_a_misspelt_setting(tmp_path: Path, sqlite_url: str) -> None:
    """A server that does other than was meant is worse than none."""
    ended = shell(tmp_path, sqlite_url, "serve", TOCSIN_TELEGRAM_CHAT_ID="17")

    assert ended.returncode == 2
    assert "did you mean TOCSIN_TELEGRAM_CHAT_IDS?" in ended.stderr


def shell(folder: Path, database_url: str, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tocsin", *argv],
        cwd=folder,
        env=environment(folder, database_url) | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def program(folder: Path, database_url: str, *argv: str) -> Iterator[None]:
    """A command that goes on until its input ends."""
    command = [sys.executable, "-m", "tocsin", *argv]
    with subprocess.Popen(command, cwd=folder, env=environment(folder, database_url), stdin=subprocess.PIPE) as running:
        yield
        running.communicate(b"\n", timeout=30)


def environment(folder: Path, database_url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))}
    kept |= {"TOCSIN_DATABASE_URL": database_url, "TOCSIN_SPOOL_DIR": str(folder / "spool")}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.mark.gate
def test_check_does_not_wait_for_a_database_that_says_nothing(tmp_path: Path) -> None:
    """A firewall that swallows everything is the case in which people need an answer most."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        ended = shell(tmp_path, f"postgresql://tocsin@127.0.0.1:{silent.getsockname()[1]}/tocsin", "check")

    assert ended.returncode == 1
    assert "FAIL database" in ended.stdout
    assert "ok   spool" in ended.stdout


def test_show_has_the_source_around_the_line(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    frame = {
        "module": "shop",
        "function": "pay",
        "file": "/srv/shop.py",
        "line": 7,
        "text": "total / 0",
        "in_app": True,
    }
    stored(error(context={"tocsin.frames": [frame | {"before": ["def pay():", "    total = 1"], "after": ["x"]}]}))

    said = tocsin("show", "1").out

    assert "      5  def pay():\n      6      total = 1\n>     7      total / 0\n      8  x\n" in said


def test_show_has_the_local_variables(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    frame = {"module": "shop", "function": "pay", "file": "/srv/shop.py", "line": 7, "text": "x", "in_app": True}
    stored(error(context={"tocsin.frames": [frame | {"vars": {"total": "7", "said": "\x1b[31m"}}]}))

    said = tocsin("show", "1").out

    assert "In pay (/srv/shop.py:7)\n  said = \\x1b[31m\n  total = 7\n" in said


def test_show_has_what_came_before_the_error(tocsin: Tocsin, stored: Stored, error: ErrorFactory) -> None:
    crumb = {"time": "2026-03-14T09:26:53.589+00:00", "kind": "log", "level": "info", "logger": "shop.orders"}
    stored(error(context={"tocsin.breadcrumbs": [crumb | {"message": "order is\x1b[31m paid"}]}))

    said = tocsin("show", "1").out

    assert "09:26:53.589  info  shop.orders  order is\\x1b[31m paid" in said
    assert "tocsin.breadcrumbs" not in said
