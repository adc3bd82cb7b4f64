"""`tocsin prune`: what it removes, what it says meanwhile, and what it lives through."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select

from tests.postgres import PostgresServer, missing_part
from tests.processes import environment_of
from tests.waiting import eventually
from tocsin import cli, clock, ids
from tocsin.prune import Progress, Stop, prune
from tocsin.store import Store, open_store, schema
from tocsin.store.migrate import migrate_now
from tocsin.store.retention import Policy, Run, Task

pytestmark = pytest.mark.usefixtures("clean_environment")

DAY = timedelta(days=1)


def old_rows(store: Store, number: int, age: timedelta = 40 * DAY, stack: str = "") -> None:
    """Rows as another program leaves them."""
    then = clock.now() - age
    row = {"severity": "high", "category": "api", "message": "boom", "stack": stack, "created_at": then}

    def work(connection: Connection) -> None:
        rows = [row | {"id": ids.uuid7(), "timestamp": then + at * timedelta(seconds=1)} for at in range(number)]
        connection.execute(insert(schema.error_logs), rows)

    store.write_now(work)


def rows_in(store: Store) -> int:
    return store.read_now(
        lambda connection: connection.execute(select(func.count(schema.error_logs.c.id))).scalar_one()
    )


@pytest.fixture
def tocsin(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a command that ends well; the lines that it says."""

    def run(*argv: str) -> list[str]:
        assert cli.main(argv) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_what_is_too_old_goes_and_is_told(
    tocsin: Callable[..., list[str]], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First what would go, then what went, then that nothing is left to do."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", database_url)
    store = open_store(database_url)
    old_rows(store, 60)
    old_rows(store, 3, age=10 * DAY)

    assert tocsin("prune", "--dry-run")[0] == "would remove 60 errors older than 30 days"
    assert rows_in(store) == 63

    done = json.loads("".join(tocsin("prune", "--json")))
    assert (done["success"], done["dry_run"], done["removed"]) == (True, False, {"age": 60})
    assert done["used_mb"] <= done["file_mb"]

    assert tocsin("prune")[0] == "nothing is too old or too much"
    assert rows_in(store) == 3
    assert tocsin("prune", "--days", "7")[0] == "removed 3 errors older than 7 days"
    store.close_now()


def test_where_a_server_has_the_database_prune_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would be pruned is an empty file that nobody has heard of."""
    monkeypatch.setenv("TOCSIN_ENDPOINT", "http://127.0.0.1:4318")

    assert cli.main(["prune"]) == 2
    assert "where http://127.0.0.1:4318 has it; run it there" in capsys.readouterr().err


def test_a_vacuum_gives_the_space_back(
    tocsin: Callable[..., list[str]], tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing of what was removed in the file or in its log."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)
    store = open_store(sqlite_url)
    old_rows(store, 300, stack="canary-77aa " * 800)

    tocsin("prune", "--vacuum")

    assert (tmp_path / "tocsin.db").stat().st_size < 2**20
    assert not [file for file in tmp_path.glob("tocsin.db*") if b"canary-77aa" in file.read_bytes()]
    store.close_now()


def test_ctrl_c_ends_it_and_what_was_removed_stays_removed(tmp_path: Path, database_url: str) -> None:
    store = open_store(database_url)
    old_rows(store, 10_000)
    ended = subprocess.Popen(
        [sys.executable, "-m", "tocsin", "prune"],
        cwd=tmp_path,
        env=environment_of(tmp_path, database_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: rows_in(store) < 10_000, 20)
    ended.send_signal(signal.SIGINT)
    out, err = ended.communicate(timeout=20)

    assert ended.returncode == 128 + signal.SIGINT, err
    assert "what was removed stays removed" in out
    assert "Traceback" not in err
    assert 0 < rows_in(store) < 10_000
    store.close_now()


def test_it_goes_on_after_the_database_was_away(postgres_server: PostgresServer) -> None:
    """It says so, and removes each row once."""
    store = open_store(postgres_server.url)
    migrate_now(store)
    old_rows(store, 10_000)
    said = io.StringIO()
    done: list[Counter[Task]] = []
    pruning = open_store(postgres_server.url)
    worker = threading.Thread(target=lambda: done.append(_pruned(pruning, said)))
    worker.start()
    eventually(lambda: rows_in(store) < 10_000, 20)
    postgres_server.stop(at_once=True)
    eventually(said.getvalue, 20)
    postgres_server.start()
    worker.join(30)

    assert [removed[Task.AGE] for removed in done] == [10_000]
    assert said.getvalue().count("tocsin: ") == 1
    assert eventually(lambda: rows_in(store) == 0)
    store.close_now()


def _pruned(store: Store, stream: io.StringIO) -> Counter[Task]:
    try:
        return prune(store, Policy(days=30), Stop(), stream).removed
    finally:
        store.close_now()


def test_a_database_that_takes_no_writes_ends_it_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A standby, a primary after a failover: nobody waits before a run that cannot begin; a dry one can."""
    name = postgres_url.rpartition("/")[2]
    store = open_store(postgres_url)
    old_rows(store, 3)
    store.write_now(lambda c: c.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    store.close_now()
    monkeypatch.setenv("TOCSIN_DATABASE_URL", postgres_url)

    assert cli.main(["prune"]) == 1
    assert "nothing is removed: " in (said := capsys.readouterr().err)
    assert "it takes no writes, as a standby does" in said

    assert cli.main(["prune", "--dry-run"]) == 0
    assert "would remove 3 errors" in capsys.readouterr().out


def test_who_may_not_remove_rows_is_told_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when error_logs belongs to another user; no wait would change that."""
    role = f"reader_{postgres_url.rpartition('/')[2]}"
    store = open_store(postgres_url)
    for statement in (
        f"CREATE ROLE {role} LOGIN",
        f"GRANT USAGE ON SCHEMA tocsin TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA tocsin TO {role}",
        f"ALTER ROLE {role} BYPASSRLS",
        f"GRANT SELECT ON error_logs TO {role}",
    ):
        store.write_now(Connection.exec_driver_sql, statement)
    monkeypatch.setenv("TOCSIN_DATABASE_URL", postgres_url.replace("//postgres@", f"//{role}@"))

    try:
        assert cli.main(["prune"]) == 1
        assert "nothing is removed: " in (said := capsys.readouterr().err)
        assert "has to name the user who owns" in said
    finally:
        store.write_now(Connection.exec_driver_sql, f"DROP OWNED BY {role}")
        store.write_now(Connection.exec_driver_sql, f"DROP ROLE {role}")
        store.close_now()


_AS_NOBODY = """
import os, sys
from tocsin import cli, prune
from tocsin.store import migrate, open_store
open_store("sqlite://" + sys.argv[1] + "warm.db").read_now(migrate.version)  # what it loads may be closed to nobody
os.setuid(65534)
sys.exit(cli.main(["prune"]))
"""


def test_a_file_that_may_not_be_written_ends_it_at_once(tmp_path: Path) -> None:
    if os.getuid() != 0:
        missing_part("a second user")
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/tocsin.db"
        store = open_store(url)
        migrate_now(store)
        old_rows(store, 3)
        store.close_now()
        Path(folder).chmod(0o777)
        (Path(folder) / "tocsin.db").chmod(0o644)
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, f"/{tmp_path}/"],
            cwd=tmp_path,
            env=environment_of(tmp_path, url),
            capture_output=True,
            text=True,
            check=False,
        )
        store = open_store(url)
        assert rows_in(store) == 3
        store.close_now()

    assert done.returncode == 1, done.stderr
    assert f"nothing is removed: {folder}/tocsin.db cannot be read and written by this user" in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "lines"), [(Terminal(), 0), (io.StringIO(), 1)])
def test_progress_is_one_line_on_a_terminal_and_more_elsewhere(stream: io.StringIO, lines: int) -> None:
    """Percent, rows, and how many a second."""
    run = Run(Policy(days=30))
    run.removed[Task.AGE] = 420_000
    progress = Progress(stream, Counter({Task.AGE: 1_000_000}), Policy(days=30), began=time.monotonic() - 42)
    progress.show(run)
    progress.show(run)  # too soon after the first

    # Between the two looks at the clock time goes by.
    assert re.search(r" 42 %  420,000 of 1,000,000 rows, (10,000|9,\d{3})/s, errors older than", stream.getvalue())
    assert stream.getvalue().count("\n") == lines
