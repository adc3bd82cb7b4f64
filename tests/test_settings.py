"""Settings: where they come from, which wins, and what is said of a wrong one."""

from __future__ import annotations

import subprocess
from datetime import time
from pathlib import Path
from typing import Any

import pytest

from tocsin.failures import SettingsError
from tocsin.settings import Settings, as_text, git_release, reference, service_name


def load(folder: Path, **environ: str) -> Settings:
    return Settings.load(environ, folder)


def problems(folder: Path, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, folder)
    return caught.value.problems


def test_the_stronger_source_wins(tmp_path: Path) -> None:
    """Arguments, environment, .env, tocsin.toml, and the standard's own variables last."""
    standard = {"OTEL_SERVICE_NAME": "five", "OTEL_RESOURCE_ATTRIBUTES": "service.name=six,service.version=1%2E0"}
    assert Settings.load(standard, tmp_path).service == "five"
    assert Settings.load(standard, tmp_path).release == "1.0"
    (tmp_path / "tocsin.toml").write_text('service = "four"\n[rules]\nx = 1\n')
    assert Settings.load(standard, tmp_path).service == "four"
    (tmp_path / ".env").write_text("OTHER=1\nexport TOCSIN_SERVICE='three'  # ours\n")
    assert Settings.load(standard, tmp_path).service == "three"
    environ = standard | {"TOCSIN_SERVICE": "two"}
    assert Settings.load(environ, tmp_path).service == "two"
    assert Settings.load(environ, tmp_path, service="one").service == "one"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("spool_max_bytes", "300M", 300 * 2**20),
        ("capture_4xx", "yes", True),
        ("telegram_chat_ids", "17, -1001", (17, -1001)),
        ("digest_at", "9:05", time(9, 5)),
        ("quiet_hours", "23:00-08:00", (time(23), time(8))),
        ("log_level", "WARNING", "warning"),
        ("public_url", "https://t.example/", "https://t.example"),
        ("categories", "billing=host:pay.example", (("billing", "host", "pay.example"),)),
        ("database_url", "postgres://u:p%2Fw@h:5432/d?sslmode=require", "postgres://u:p%2Fw@h:5432/d?sslmode=require"),
    ],
)
def test_texts_become_values_and_values_the_same_texts(tmp_path: Path, name: str, text: str, value: Any) -> None:
    settings = load(tmp_path, **{f"TOCSIN_{name.upper()}": text})

    assert getattr(settings, name) == value
    again = load(tmp_path, **{f"TOCSIN_{name.upper()}": as_text(value)})
    assert getattr(again, name) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("DATABASE_URL", "mysql://u:secret@h/d", "unknown scheme 'mysql'"),
        ("DATABASE_URL", "postgresql://u:secret@h", "name of the database is missing"),
        ("DATABASE_URL", "postgresql://u:sec/ret@h/d", "written %2F"),
        ("DATABASE_URL", "postgresql://u:sec#ret@h/d", "written %2F, %3F or %23"),
        ("DATABASE_URL", "postgresql://u:p@secret?x@h/d", "written %2F, %3F or %23"),
        ("DATABASE_URL", "postgresql://u:[secret@h/d", "written %5B"),
        ("DATABASE_URL", "postgresql://u:secret@h:99999/d", "the port is no number from 1 to 65535"),
        ("DATABASE_URL", "postgresql:/u:secret@h/d", "give sqlite:////folder/tocsin.db or postgresql://user"),
        ("DATABASE_URL", "secret", "give sqlite:////folder/tocsin.db or postgresql://user"),
        ("DATABASE_URL", "'postgresql://u:secret@h/d'", "leave out the quotes"),
        ("DATABASE_URL", "sqlite://", "the file is missing"),
        ("DATABASE_URL", "sqlite:/srv/tocsin.db", "give sqlite:////folder/tocsin.db"),
        ("DATABASE_URL", "sqlite://tocsin.db", "a / is missing"),
        ("DATABASE_URL", "sqlite:///:memory:", "gone with its process"),
        ("ENDPOINT", "127.0.0.1:4318", "'127.0.0.1:4318' is wrong: give an address that begins with http://"),
        ("ENDPOINT", "http://:4318", "the host is missing"),
        ("ENDPOINT", "http://h:port", "the port is no number"),
        ("ENDPOINT", "http://h:99999", "the port is no number from 1 to 65535"),
        ("ENDPOINT", "http://[::1", "IPv6"),
        ("ENDPOINT", "http://u:sec#ret@h", "written %2F"),
        ("ENDPOINT", "http://u:secret@h", "TOCSIN_INGEST_TOKEN"),
        ("ENDPOINT", "http://h/v1/logs", "leave /v1/logs out"),
        ("ENDPOINT", "http://h/tocsin/api/debug/", "leave /api/debug out"),
        ("ENDPOINT", "http://h?x=1", "nothing comes after"),
        ("DIGEST_AT", "25:00", "'25:00' is wrong"),
        ("TELEGRAM_CHAT_IDS", "@team", "numeric ids"),
        ("CHECK_INTERVAL_S", "soon", "number of seconds"),
        ("RETENTION_DAYS", "0", "1 to 36500 days"),
        ("TIMEZONE", "Berlin", "Europe/Berlin"),
        ("LANGUAGE", "de", "one of en, ru"),
        ("PUBLIC_URL", "javascript:alert(1)", "http://"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(tmp_path: Path, name: str, text: str, said: str) -> None:
    (problem,) = problems(tmp_path, **{f"TOCSIN_{name}": text})

    assert problem.startswith(f"TOCSIN_{name}:")
    assert said in problem
    assert "secret" not in problem and "sec/ret" not in problem and "sec#ret" not in problem


def test_every_problem_is_said_at_once(tmp_path: Path) -> None:
    assert len(problems(tmp_path, TOCSIN_DIGEST_AT="x", TOCSIN_LANGUAGE="x", TOCSIN_NOPE="x")) == 3


def test_a_misspelt_name_gets_the_nearest(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, TOCSIN_TELEGRM_TOKEN="x")

    assert "did you mean TOCSIN_TELEGRAM_TOKEN?" in problem
    (problem,) = problems(tmp_path, TOCSIN_PORT="80")
    assert "`tocsin serve --port` takes it" in problem


def test_a_program_starts_with_the_default_all_the_same(tmp_path: Path) -> None:
    settings, found = Settings.load_leniently({"TOCSIN_DIGEST_AT": "x"}, tmp_path, nonsense=1)

    assert settings.digest_at == time(9)
    assert len(found) == 2


def test_no_secret_is_shown(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        TOCSIN_TOKEN="hush-hush",
        TOCSIN_DATABASE_URL="postgresql://u:hush-hush@h/d",
        TOCSIN_TELEGRAM_TOKEN="1:hush-hush",
    )

    assert "hush" not in repr(settings)
    assert "hush" not in settings.shown_database()
    assert {"hush-hush", "1:hush-hush"} <= set(settings.secrets())


def test_development_and_test_do_not_ring_unless_told(tmp_path: Path) -> None:
    usual, told = load(tmp_path), load(tmp_path, TOCSIN_ALERT_ENVIRONMENTS="test")

    assert [usual.rings_in(one) for one in ("production", "staging", "development", "test")] == [
        True,
        True,
        False,
        False,
    ]
    assert [told.rings_in(one) for one in ("production", "test")] == [False, True]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["uvicorn", "shop.main:app", "--port", "80"], "shop"),
        (["python", "app.py"], "app"),
        (["python", "-m", "shop.worker"], "shop"),
        (["python", "-m", "uvicorn", "shop:app"], "shop"),
        (["celery", "-A", "proj", "worker"], "proj"),
        (["node", "dist/server.js"], "server"),
        (["/usr/bin/nginx"], "nginx"),
        ([], "service"),
    ],
)
def test_a_service_that_nobody_named_is_named_by_its_command(command: list[str], name: str) -> None:
    assert service_name(command) == name


def test_the_release_is_the_commit_of_the_folder(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        options = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        return subprocess.run(
            ["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert git_release(tmp_path) is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    commit = git("rev-parse", "HEAD").strip()[:12]
    (tmp_path / "deep" / "er").mkdir(parents=True)

    assert git_release(tmp_path / "deep" / "er") == commit
    git("pack-refs", "--all")
    assert git_release(tmp_path) == commit
    git("checkout", "-q", "--detach")
    assert git_release(tmp_path) == commit


def test_the_reference_has_every_setting() -> None:
    assert len({name for name, _, _ in reference()}) == len(reference()) > 40


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("smtp_url", "smtp://us%40er:p%2Fw@h.example", "smtp://us%40er:p%2Fw@h.example"),
        ("email_from", "tocsin <t@shop.example>", "tocsin <t@shop.example>"),
        ("email_to", "a@shop.example, b+c@sub.shop.example,a@shop.example", ("a@shop.example", "b+c@sub.shop.example")),
        ("webhook_url", "https://u:p@hooks.example/x/?key=1", "https://u:p@hooks.example/x/?key=1"),
        ("webhook_allow_private", "1", True),
    ],
)
def test_what_mail_and_webhook_need_is_read(tmp_path: Path, name: str, text: str, value: Any) -> None:
    """A slash at the end of an address that is called may matter."""
    pair = {"TOCSIN_SMTP_URL": "smtp://h.example", "TOCSIN_EMAIL_TO": "a@shop.example"}

    assert getattr(load(tmp_path, **pair | {f"TOCSIN_{name.upper()}": text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("SMTP_URL", "mail.example", "give smtp://"),
        ("SMTP_URL", "ftp://u:s3cret@h.example", "unknown scheme 'ftp'; give smtp://"),
        ("SMTP_URL", "smtp://u:s3cret@:587", "the host is missing"),
        ("SMTP_URL", "smtp://u:s3cret@h.example:70000", "the port is no number from 1 to 65535"),
        ("SMTP_URL", "smtp://h.example:0", "the port is no number from 1 to 65535"),
        ("SMTP_URL", "smtp://u:s3cret/x@h.example", "written %2F"),
        ("SMTP_URL", "smtp://u:s3cret#x@h.example", "written %2F"),
        ("SMTP_URL", "smtp://u:s3cret@h.example/x", "nothing comes after host and port"),
        ("SMTP_URL", "smtp://u@h.example", "give user and password, or neither"),
        ("SMTP_URL", "smtp://u:s3cret%0D%0A@h.example", "control character"),
        ("SMTP_URL", "smtp://u:s3cret@h.example:x", "the port is no number"),
        ("EMAIL_TO", "anna", "'anna' is no address"),
        ("EMAIL_TO", "a@shop.example,b@@shop.example", "'b@@shop.example' is no address"),
        ("EMAIL_TO", "a@shop.example\nBcc: b@x.example", "is no address"),
        ("EMAIL_TO", "a..b@shop.example", "is no address"),
        ("EMAIL_TO", "анна@shop.example", "is no address"),
        ("EMAIL_TO", "a@-shop.example", "is no address"),
        ("EMAIL_FROM", "tocsin", "give an address"),
        ("EMAIL_FROM", "tocsin\nBcc: b@x.example <t@shop.example>", "give an address"),
        ("WEBHOOK_URL", "hooks.example/s3cret", "begins with http"),
        ("WEBHOOK_URL", "ftp://hooks.example/s3cret", "begins with http"),
        ("WEBHOOK_URL", "https://hooks.example/s3cret x", "no space"),
        ("WEBHOOK_URL", "https://u:s3cret/x@hooks.example", "written %2F"),
    ],
)
def test_a_wrong_mail_or_webhook_setting_is_named_without_its_secrets(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    """One problem, and only that: what hangs together with it is not complained of as well."""
    values = {"TOCSIN_SMTP_URL": "smtp://h.example", "TOCSIN_EMAIL_TO": "a@shop.example", f"TOCSIN_{name}": text}
    [problem] = problems(tmp_path, **values)

    assert problem.startswith(f"TOCSIN_{name}: ") and says in problem
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    ("given", "missing"),
    [({"SMTP_URL": "smtp://h.example"}, "EMAIL_TO"), ({"EMAIL_TO": "a@shop.example"}, "SMTP_URL")],
)
def test_half_of_what_mail_needs_is_not_taken_silently(tmp_path: Path, given: dict[str, str], missing: str) -> None:
    """Nobody shall wait for a mail that cannot come."""
    [problem] = problems(tmp_path, **{f"TOCSIN_{name}": value for name, value in given.items()})

    assert problem.startswith(f"TOCSIN_{missing}: not set")
