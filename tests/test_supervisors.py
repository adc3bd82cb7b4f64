"""What PM2 and systemd say of the programs that they keep alive, and whether those have the time to stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pm2 import pm2_daemon
from tocsin import checks, supervisors
from tocsin.settings import Settings

RUN = ["run", "--", "uvicorn", "shop:app"]


def app(**more: object) -> dict[str, object]:
    return {"name": "shop", "pm_exec_path": "/opt/tocsin/bin/tocsin", "args": RUN, **more}


def test_pm2_gives_a_moment_unless_it_is_told_otherwise() -> None:
    (kept,) = supervisors.in_pm2([app()], 30)

    assert (kept.by, kept.name, kept.stop_s) == ("PM2", "shop", 1.6)
    assert not kept.is_long_enough
    assert kept.setting == "kill_timeout: 35000"


def test_pm2_is_told_in_milliseconds() -> None:
    (kept,) = supervisors.in_pm2([{"pm2_env": app(kill_timeout=40_000, max_memory_restart=104857600)}], 30)

    assert kept.stop_s == 40
    assert kept.is_long_enough
    assert kept.memory_limit


@pytest.mark.parametrize("apps", [[app(args=["check"])], [app(pm_exec_path="/usr/bin/node")], [None, 1, {}, [app()]]])
def test_what_is_not_ours_is_left_out(apps: list[object]) -> None:
    assert list(supervisors.in_pm2(apps, 30)) == []


UNITS = """\
Id=shop.service
ExecStart={ path=/srv/shop/venv/bin/tocsin ; argv[]=/srv/shop/venv/bin/tocsin run -- uvicorn shop:app ; pid=0 }
TimeoutStopUSec=1min 30s

Id=tocsin.service
ExecStart={ path=/opt/python ; argv[]=/opt/python -m tocsin serve ; ignore_errors=no ; pid=0 }
TimeoutStopUSec=5s

Id=cron.service
ExecStart={ path=/usr/sbin/cron ; argv[]=/usr/sbin/cron -f ; pid=0 }
TimeoutStopUSec=infinity
"""


def test_units_of_systemd() -> None:
    shop, server = supervisors.in_systemd(UNITS, 30)

    assert (shop.name, shop.stop_s, shop.is_long_enough) == ("shop.service", 90, True)
    assert (server.name, server.stop_s, server.is_long_enough) == ("tocsin.service", 5, False)
    assert server.setting == "TimeoutStopSec=35"


@pytest.mark.parametrize(
    ("span", "seconds"), [("35s", 35), ("1h 2min 3s", 3723), ("500ms", 0.5), ("infinity", float("inf")), ("", None)]
)
def test_spans_as_systemd_prints_them(span: str, seconds: float | None) -> None:
    assert supervisors.seconds(span) == seconds


def test_check_names_what_a_saved_list_of_pm2_is_short_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PM2_HOME", str(tmp_path))
    saved = [
        app(name="a"),
        app(name="b", kill_timeout=35_000, max_memory_restart=1),
        app(name="c", kill_timeout=35_000),
    ]
    (tmp_path / "dump.pm2").write_text(json.dumps(saved))

    found = [one for one in checks.check_supervisor(Settings()) if one.what.startswith("PM2")]

    assert [one.state for one in found] == ["FAIL", "FAIL", "ok"]
    assert "kill_timeout: 35000" in found[0].mend
    assert "--max-memory" in found[1].mend


def test_without_a_supervisor_check_says_what_each_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PM2_HOME", str(tmp_path))
    said = " ".join(one.what for one in checks.check_supervisor(Settings(shutdown_timeout_s=10)))

    assert "15" in said
    assert ("stop_grace_period" in said) == supervisors.is_container()


@pytest.mark.gate
def test_a_running_pm2_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not saved its list; the list that it prints is read."""
    program = tmp_path / "tocsin"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    with pm2_daemon() as pm2:
        pm2.start(tmp_path, {"name": "shop", "script": str(program), "args": RUN, "interpreter": "none"})
        monkeypatch.setenv("PM2_HOME", str(pm2.home))
        monkeypatch.setenv("PATH", f"{pm2.program.parent}:/usr/bin:/bin")

        (kept,) = supervisors.kept_here(30)

    assert (kept.name, kept.stop_s) == ("shop", 1.6)
