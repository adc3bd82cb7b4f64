"""`tocsin beat` in a crontab: the job runs as it would without, and how it went is told sooner or later."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.house import open_house
from tests.processes import environment_of
from tests.waiting import eventually
from tocsin import cli, clock
from tocsin.exporter.drain import adopting
from tocsin.model import Beat
from tocsin.settings import Settings
from tocsin.store import beats, open_store
from tocsin.store.beats import KeptBeat

NOWHERE = "postgresql://nobody@127.0.0.1:1/away"
DAILY = ("--every", "1d")

Crontab = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cron(tmp_path: Path, sqlite_url: str) -> Crontab:
    """Runs `tocsin beat …` as cron does: a process of its own, without a terminal."""

    def run(*argv: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tocsin", "beat", *argv],
            cwd=tmp_path,
            env=environment_of(tmp_path, sqlite_url, **environ),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def kept(sqlite_url: str) -> list[KeptBeat]:
    store = open_store(sqlite_url)
    try:
        return store.read_now(beats.list_beats)
    finally:
        store.close_now()


def the_beat(sqlite_url: str) -> KeptBeat:
    (beat,) = kept(sqlite_url)
    return beat


def register(sqlite_url: str, *told: Beat) -> None:
    store = open_store(sqlite_url)
    for beat in told:
        store.write_now(beats.tell, beat, clock.now())
    store.close_now()


# Without a command


def test_a_beat_is_told_in_silence(cron: Crontab, sqlite_url: str, tmp_path: Path) -> None:
    """Cron sends by mail whatever a job writes; and a beat makes no instance and leaves no file."""
    done = cron("nightly", *DAILY, "--grace", "2h", "--message", "17 files", TOCSIN_ENVIRONMENT="staging")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    beat = the_beat(sqlite_url)
    assert (beat.name, beat.environment, beat.service, beat.message) == ("nightly", "staging", "cron", "17 files")
    assert (beat.every_s, beat.grace_s, beat.is_ok, beat.took_s) == (86_400.0, 7200.0, True, None)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_script_may_say_that_it_has_failed(cron: Crontab, sqlite_url: str) -> None:
    cron("nightly", *DAILY, TOCSIN_SERVICE="shop")
    done = cron("nightly", "--failed", "--message", "disk full", TOCSIN_SERVICE="shop")

    assert (done.returncode, done.stderr) == (0, "")
    beat = the_beat(sqlite_url)
    assert (beat.is_ok, beat.message, beat.service, beat.every_s) == (False, "disk full", "shop", 86_400.0)


def test_how_often_has_to_be_said_once(cron: Crontab, sqlite_url: str) -> None:
    done = cron("nightly")

    assert done.returncode == 2
    assert "nothing is known of nightly in production yet: say how often it runs, such as --every 1d" in done.stderr
    assert kept(sqlite_url) == []


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("nightly", "--every", "daily"), "--every: give a length of time"),
        (("a/b", "--every", "1d"), "name: give 1 to 100 letters"),
        (("--every", "1d"), "name: which beat?"),
        (("nightly", "--forget", "--every", "1d"), "--forget: stands alone"),
        (("nightly", "--failed", "--", "true"), "--failed: the command's exit code says that"),
        (("nightly", "more"), "there is no place for 'more'"),
    ],
)
def test_wrong_usage_is_named(argv: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is run or told."""
    try:
        code: object = cli.main(["beat", *argv])
    except SystemExit as end:
        code = end.code

    assert code == 2
    assert problem in capsys.readouterr().err


# With a command


def test_a_job_runs_as_it_would_without(cron: Crontab, sqlite_url: str) -> None:
    done = cron("nightly", *DAILY, "--", "sh", "-c", "cat; echo beside >&2", stdin="through")

    assert (done.returncode, done.stdout, done.stderr) == (0, "through", "beside\n")
    beat = the_beat(sqlite_url)
    assert (beat.is_ok, beat.message) == (True, None)
    assert beat.took_s is not None
    assert 0 <= beat.took_s < 20


def test_a_failing_job_keeps_its_exit_code_and_says_why(cron: Crontab, sqlite_url: str) -> None:
    """With the end of its stderr, without secrets, and bounded however much it says."""
    code = (
        "import sys; sys.stderr.write('x' * 100 + '\\n' * 2000 + 'password=hunter22\\nno space left\\n'); sys.exit(7)"
    )
    done = cron("nightly", *DAILY, "--", sys.executable, "-c", code)

    assert done.returncode == 7
    assert done.stderr.endswith("no space left\n")
    beat = the_beat(sqlite_url)
    assert not beat.is_ok
    assert beat.message is not None
    assert beat.message.startswith("exit code 7\n")
    assert beat.message.endswith("no space left")
    assert "hunter22" not in beat.message
    assert len(beat.message) <= 2000


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("sh", "-c", "kill -KILL $$"), -signal.SIGKILL, "killed by SIGKILL"),
        (("no-such-program",), 127, "'no-such-program' cannot be run: No such file or directory"),
        (("/",), 126, "'/' cannot be run: Permission denied"),
    ],
)
def test_every_end_is_passed_on(cron: Crontab, sqlite_url: str, command: tuple[str, ...], code: int, said: str) -> None:
    done = cron("nightly", *DAILY, "--", *command)

    assert done.returncode == code
    assert the_beat(sqlite_url).message == said


def test_a_signal_reaches_the_job_once(tmp_path: Path, sqlite_url: str) -> None:
    """As does one to the whole group, from a terminal or a supervisor; the job's end is ours."""
    code = """
import signal, sys, time
came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(1))
print("ready", flush=True)
until = time.monotonic() + 20
while not came and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.4)
sys.exit(40 + len(came))
"""
    for is_to_group in (False, True):
        job = subprocess.Popen(
            [sys.executable, "-m", "tocsin", "beat", "nightly", *DAILY, "--", sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment_of(tmp_path, sqlite_url),
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        (os.killpg if is_to_group else os.kill)(job.pid, signal.SIGTERM)
        assert job.wait(30) == 41
        job.stdout.close()


def test_at_a_terminal_the_job_keeps_it(tmp_path: Path, sqlite_url: str) -> None:
    """Colours, and a bar that grows."""
    ours, its = pty.openpty()
    try:
        code = "import sys; sys.exit(0 if sys.stderr.isatty() else 5)"
        command = [sys.executable, "-m", "tocsin", "beat", "nightly", *DAILY, "--", sys.executable, "-c", code]
        done = subprocess.run(command, env=environment_of(tmp_path, sqlite_url), stderr=its, timeout=60, check=False)
        assert done.returncode == 0
    finally:
        os.close(ours)
        os.close(its)


def test_a_job_runs_whatever_is_wrong_with_us(cron: Crontab, sqlite_url: str) -> None:
    """A setting that is wrong, a name that nobody knows: it is said, and not in its way."""
    wrong = cron("nightly", *DAILY, "--", "sh", "-c", "echo done; exit 3", TOCSIN_SPOOL_MAX_BYTES="much")
    unknown = cron("hourly", "--", "sh", "-c", "echo done; exit 3")

    for done in (wrong, unknown):
        assert (done.returncode, done.stdout) == (3, "done\n")
    assert "TOCSIN_SPOOL_MAX_BYTES" in wrong.stderr
    assert "nothing is known of hourly" in unknown.stderr


# While nobody can be told


def test_while_the_database_is_away_a_beat_waits_and_is_stored_later(
    cron: Crontab, postgres_url: str, tmp_path: Path
) -> None:
    """The next one takes it along: this may be a machine on which nothing else of tocsin runs."""
    began = time.monotonic()
    done = cron("nightly", *DAILY, "--", "sh", "-c", "exit 3", TOCSIN_DATABASE_URL=NOWHERE)
    assert done.returncode == 3
    assert time.monotonic() - began < 20
    assert "waits in" in done.stderr
    alone = cron("weekly", "--every", "1w", TOCSIN_DATABASE_URL=NOWHERE)
    assert alone.returncode == 0
    assert kept(postgres_url) == []

    cron("hourly", "--every", "1h", TOCSIN_DATABASE_URL=postgres_url)

    eventually(lambda: len(kept(postgres_url)) == 3)
    found = kept(postgres_url)
    assert [(one.name, one.is_ok) for one in found] == [("hourly", True), ("nightly", False), ("weekly", True)]
    assert found[1].last_at < found[0].last_at
    assert list((tmp_path / "spool").glob("*.seg")) == []


def test_what_waited_makes_nothing_older(cron: Crontab, sqlite_url: str, tmp_path: Path) -> None:
    """It ran well since, and was told at once: the failure before that is history."""
    cron("nightly", *DAILY, "--failed", TOCSIN_DATABASE_URL=NOWHERE)
    register(sqlite_url, Beat(name="nightly", timestamp=clock.now(), environment="production", every_s=86_400.0))
    settings = Settings(database_url=sqlite_url, spool_dir=str(tmp_path / "spool"))
    with adopting(settings):
        eventually(lambda: not list((tmp_path / "spool").glob("*.seg")))

    assert the_beat(sqlite_url).is_ok


# By way of a server


def test_by_way_of_a_server(cron: Crontab, sqlite_url: str, tmp_path: Path) -> None:
    """Told with the ingest token, listed with a token that reads, forgotten with the full one."""
    settings = Settings(
        database_url=sqlite_url,
        spool_dir=str(tmp_path / "of the server"),
        token="full-secret",
        ingest_token="ingest-secret",
    )
    with open_house(settings) as address:
        there = {"TOCSIN_ENDPOINT": address, "TOCSIN_DATABASE_URL": ""}
        told = cron("nightly", *DAILY, "--failed", TOCSIN_INGEST_TOKEN="ingest-secret", **there)
        assert (told.returncode, told.stderr) == (0, "")
        eventually(lambda: kept(sqlite_url))
        listed = cron("--json", TOCSIN_TOKEN="full-secret", **there)
        assert [one["state"] for one in json.loads(listed.stdout)["beats"]] == ["failed"]
        unknown = cron("hourly", TOCSIN_TOKEN="full-secret", **there)
        assert unknown.returncode == 2
        forgotten = cron("nightly", "--forget", TOCSIN_TOKEN="full-secret", **there)
        assert forgotten.stdout == "nightly in production is forgotten\n"
        assert cron("nightly", "--forget", TOCSIN_TOKEN="full-secret", **there).returncode == 1
    assert kept(sqlite_url) == []


# The list


@pytest.fixture
def typed(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `tocsin beat …` prints, in this process."""
    for name in [name for name in os.environ if name.startswith(("TOCSIN_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)

    def run(*argv: str, code: int = 0) -> str:
        assert cli.main(["beat", *argv]) == code
        return capsys.readouterr().out

    return run


def test_the_list_is_a_table_and_json(typed: Callable[..., str], sqlite_url: str) -> None:
    assert typed() == "no beats\n"
    old = clock.now() - timedelta(days=2)
    beat = Beat(name="nightly", timestamp=old, environment="production", every_s=86_400.0, message="17 files")
    register(sqlite_url, beat, replace(beat, name="hourly", timestamp=clock.now(), every_s=3600.0))

    head, hourly, nightly = typed().splitlines()
    assert head.split("  ")[0] == "NAME"
    assert hourly.split()[:3] == ["hourly", "production", "1h"]
    assert "  ok  " in hourly
    assert f"{old:%Y-%m-%d %H:%M:%S}" in nightly
    assert nightly.endswith("missing  17 files")
    found = json.loads(typed("--json"))
    assert (found["count"], [one["state"] for one in found["beats"]]) == (2, ["ok", "missing"])
    assert typed("--environment", "staging") == "no beats\n"


def test_a_job_that_was_abolished_is_forgotten(typed: Callable[..., str], sqlite_url: str) -> None:
    register(sqlite_url, Beat(name="nightly", timestamp=clock.now(), environment="production", every_s=86_400.0))

    assert typed("nightly", "--forget") == "nightly in production is forgotten\n"
    assert kept(sqlite_url) == []
    assert typed("nightly", "--forget", code=1) == ""
