"""The command line by way of a server: what it says and does is what it says and does on the database."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ErrorFactory
from tests.house import open_house
from tests.standin.otlp import PAGE, Answer, OtlpStandIn
from tests.test_cli import Answer as Said
from tests.test_cli import closed_port, status_of
from tests.waiting import eventually
from tocsin import cli, clock
from tocsin.lifecycle import Status
from tocsin.model import Batch, ErrorRecord, Severity
from tocsin.settings import Settings
from tocsin.store import audit, open_store
from tocsin.store.errors import write_batch

pytestmark = pytest.mark.usefixtures("clean_environment")

Tocsin = Callable[..., Said]
Both = Callable[..., tuple[Said, Said]]
Stored = Callable[..., None]

TOKENS: dict[str, Any] = {"token": "full-token", "read_token": "read-token", "ingest_token": "ingest-token"}


@pytest.fixture
def tocsin(capsys: pytest.CaptureFixture[str]) -> Tocsin:
    """Runs a command."""

    def run(*argv: str) -> Said:
        code = cli.main(argv)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def stored(here: str) -> Stored:
    """Errors in the server's database; each new type is a new group."""

    def store_them(*errors: ErrorRecord) -> None:
        store = open_store(here)
        store.write_now(write_batch, Batch(entries=[*errors]), clock.now())
        store.close_now()

    return store_them


@pytest.fixture
def here(database_url: str) -> str:
    """The server's database, which no setting of the command names."""
    return database_url


@pytest.fixture
def server(here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that the settings name, and nothing else."""
    settings = Settings(database_url=here, spool_dir=str(tmp_path / "server"), alert_environments=("none",), **TOKENS)
    with open_house(settings) as address:
        monkeypatch.setenv("TOCSIN_ENDPOINT", address)
        monkeypatch.setenv("TOCSIN_TOKEN", TOKENS["token"])
        yield address


@pytest.fixture
def both(
    tocsin: Tocsin,
    here: str,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Both:
    """What a command says by way of the server, and on the database."""

    def run(*command: str) -> tuple[Said, Said]:
        there = tocsin(*command)
        with monkeypatch.context() as changed:
            changed.setenv("TOCSIN_DATABASE_URL", here)
            return there, tocsin(*command)

    return run


LOOKING = (
    "errors",
    "errors --severity critical --limit 1",
    "errors --status resolved",
    "errors --status unresolved --group 2",
    "errors -q phone",
    "errors --groups",
    "errors --groups --status open --service shop",
    "show 1",
    "show #2",
    "show 99",
    "show 0190a8f0-0000-7000-8000-000000000001",
    "show no-such-id",
    "stats",
    "stats --hours 3 --service shop",
    "alerts",
)


def test_a_server_tells_what_the_database_tells(both: Both, stored: Stored, error: ErrorFactory) -> None:
    """To the letter, for people and for scripts, failures too."""
    known = "0190a8f0-0000-7000-8000-000000000001"
    stored(
        error("KeyError", id=known, context={"http.route": "/orders", "note": "ж\u2028"}, count=3),
        error("ValueError", timestamp=clock.now() - timedelta(minutes=5), severity=Severity.CRITICAL),
    )

    for line in LOOKING:
        for form in ((), ("--json",)):
            there, here = both(*line.split(), *form)
            assert there == here, line


def test_acting_by_way_of_a_server(tocsin: Tocsin, stored: Stored, server: str, here: str, error: ErrorFactory) -> None:
    """The audit names the token, which is all that the server knows of who it was."""
    stored(error("KeyError"))

    for command, expected in (
        ("ack 1", Status.ACKNOWLEDGED),
        ("mute 1 2h", Status.MUTED),
        ("ignore 1", Status.IGNORED),
        ("reopen 1", Status.OPEN),
        ("resolve 1", Status.RESOLVED),
    ):
        answer = tocsin(*command.split(), "--json")
        assert answer.code == 0
        assert answer.json["group"]["status"] == expected == status_of(here, 1)
    store = open_store(here)
    newest = store.read_now(audit.of_target, "#1")[0]
    store.close_now()
    assert (newest.via, newest.actor) == ("api", "token: full")


def test_a_mute_lasts_as_long_as_was_said(
    tocsin: Tocsin,
    stored: Stored,
    server: str,
    error: ErrorFactory,
) -> None:
    stored(error("KeyError"))

    until = tocsin("mute", "1", "--for", "90m", "--json").json["group"]["muted_until"]

    assert abs(datetime.fromisoformat(until) - clock.now() - timedelta(minutes=90)) < timedelta(minutes=1)


def test_one_that_fails_stops_none_of_the_others(
    both: Both,
    stored: Stored,
    error: ErrorFactory,
) -> None:
    """And it is said in the same words."""
    stored(error("KeyError"))

    there, here = both("resolve", "99", "1")

    assert (there.code, there.err) == (here.code, here.err)
    assert (there.out.split()[:3], here.out.split()[:3]) == (["#1", "is", "resolved"], ["#1", "was", "resolved"])


def test_a_page_goes_on_where_it_ended(
    tocsin: Tocsin,
    stored: Stored,
    server: str,
    error: ErrorFactory,
) -> None:
    stored(*(error("KeyError", message=str(at)) for at in range(5)))

    first = tocsin("errors", "--limit", "3", "--json").json
    second = tocsin("errors", "--limit", "3", "--before", first["next"], "--json").json

    assert [len(first["errors"]), len(second["errors"]), second["next"]] == [3, 2, None]
    assert tocsin("errors", "--before", "tampered").code == 2


def test_the_token_for_reading_reads_and_no_more(
    tocsin: Tocsin,
    stored: Stored,
    server: str,
    here: str,
    error: ErrorFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(error("KeyError"))
    monkeypatch.delenv("TOCSIN_TOKEN")
    monkeypatch.setenv("TOCSIN_READ_TOKEN", TOKENS["read_token"])

    assert tocsin("errors").code == 0
    answer = tocsin("resolve", "1")

    assert answer.code == 1
    assert "set TOCSIN_TOKEN to the server's" in answer.err
    assert status_of(here, 1) == Status.OPEN


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_token_that_is_missing_or_wrong_is_said(
    token: str | None,
    tocsin: Tocsin,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TOCSIN_TOKEN")
    if token:
        monkeypatch.setenv("TOCSIN_TOKEN", token)

    answer = tocsin("errors")

    assert (answer.code, answer.out) == (1, "")
    assert "set TOCSIN_TOKEN to the server's" in answer.err
    assert "wrong" not in answer.err


def test_a_server_that_is_not_there_is_said(tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_ENDPOINT", f"http://127.0.0.1:{closed_port()}")

    for command in (("errors",), ("resolve", "1")):
        answer = tocsin(*command)
        assert answer.code == 1
        assert "the server does not answer: http://127.0.0.1:" in answer.err and "TOCSIN_ENDPOINT" in answer.err
        assert len(answer.err.splitlines()) == 1


def test_somebody_else_who_answers_is_said(tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpStandIn() as other:
        monkeypatch.setenv("TOCSIN_ENDPOINT", other.address)
        answer = tocsin("errors")

    assert answer.code == 1
    assert "this is no tocsin server" in answer.err


def test_a_database_that_is_named_is_asked_itself(
    tocsin: Tocsin,
    stored: Stored,
    here: str,
    error: ErrorFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where errors of services go by way of a server."""
    stored(error("KeyError"))
    monkeypatch.setenv("TOCSIN_DATABASE_URL", here)
    monkeypatch.setenv("TOCSIN_ENDPOINT", f"http://127.0.0.1:{closed_port()}")

    assert tocsin("errors", "--json").json["count"] == 1


@pytest.mark.parametrize("command", ["migrate", "prune", "test-alert"])
def test_upkeep_is_done_where_the_database_is(
    command: str, tocsin: Tocsin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No database is made here by mistake."""
    monkeypatch.setenv("TOCSIN_ENDPOINT", "http://tocsin.example:4318")
    monkeypatch.setenv("HOME", str(tmp_path))

    answer = tocsin(command)

    assert (answer.code, answer.out) == (2, "")
    assert "the database is where http://tocsin.example:4318 has it; run it there" in answer.err
    assert not list(tmp_path.rglob("*.db"))


# Check


def findings(answer: Said) -> dict[str, Any]:
    return {one["name"]: one for one in answer.json["checks"]}


def test_check_is_content_with_a_server_that_takes_errors(tocsin: Tocsin, server: str) -> None:
    """Of the database, and of who rings, the server can tell itself."""

    checks: dict[str, Any] = {}

    def is_content() -> bool:
        answer = tocsin("check", "--json")
        checks.update(findings(answer))
        return answer.code == 0

    eventually(is_content)

    checks.pop("supervisor", None)  # of this machine
    assert {name: one["state"] for name, one in checks.items()} == dict.fromkeys(
        ("settings", "server", "clock", "spool", "waiting"), "ok"
    )
    assert server in checks["server"]["what"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(status=401), "TOCSIN_INGEST_TOKEN"),
        (PAGE, "this is no tocsin server"),
        (Answer(status=503), "does not answer"),
        (Answer(headers={"Date": "Tue, 15 Nov 1994 08:12:31 GMT"}), "s between the server's clock and this machine's"),
    ],
    ids=["wrong token", "somebody else", "not now", "another time"],
)
def test_check_knows_what_is_wrong_with_a_server(
    answer: Answer,
    said: str,
    tocsin: Tocsin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with OtlpStandIn() as other:
        other.always = answer
        monkeypatch.setenv("TOCSIN_ENDPOINT", other.address)
        checked = tocsin("check", "--json")

    assert checked.code == 1
    assert any(said in one["what"] for one in checked.json["checks"] if one["state"] == "FAIL")


def test_check_knows_a_server_that_is_not_there(tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TOCSIN_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        checked = tocsin("check", "--json")

    assert checked.code == 1
    assert findings(checked)["server"]["mend"].startswith("start `tocsin serve` there")
