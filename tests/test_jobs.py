"""`tocsin jobs`: what people see of failed jobs, and running one again where its code is."""

from __future__ import annotations

import dataclasses
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ErrorFactory
from tests.failed_jobs import failed_job
from tests.house import open_house
from tests.processes import environment_of, run_program
from tests.test_cli import Answer
from tests.waiting import eventually
from tocsin import cli, clock, jobs_cli, rerun
from tocsin.failures import BadInput
from tocsin.lifecycle import JobStatus
from tocsin.model import Batch, ErrorRecord, Job
from tocsin.settings import Settings
from tocsin.store import audit, errors, groups, jobs, open_store
from tocsin.store.jobs import KeptJob

pytestmark = pytest.mark.usefixtures("clean_environment")

Tocsin = Callable[..., Answer]
Put = Callable[..., None]


@pytest.fixture
def tocsin(capsys: pytest.CaptureFixture[str]) -> Tocsin:
    """Runs a command within this process; never one that runs a job."""

    def run(*argv: str) -> Answer:
        try:
            code = cli.main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
def here(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The settings name a database, of each kind in turn."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", database_url)
    return database_url


def store_them(database_url: str, *told: Job | ErrorRecord) -> None:
    batch = Batch(
        entries=[one for one in told if isinstance(one, ErrorRecord)],
        facts=[one for one in told if isinstance(one, Job)],
    )
    store = open_store(database_url)
    store.write_now(errors.write_batch, batch, clock.now())
    store.close_now()


@pytest.fixture
def put(here: str) -> Put:
    return lambda *told: store_them(here, *told)


def job_of(database_url: str, number: int = 1) -> KeptJob:
    store = open_store(database_url)
    try:
        return store.read_now(jobs.by_number, number)
    finally:
        store.close_now()


# Looking, and saying what became of them


def test_jobs_are_listed_last_failed_first(tocsin: Tocsin, put: Put) -> None:
    """The number in the list is the one that the other commands take."""
    put(failed_job(), failed_job(function="shop.sync:run", tries=3, message="away"))

    answer = tocsin("jobs")

    heads, *lines = answer.out.splitlines()
    assert heads.split() == ["JOB", "FAILED", "(UTC)", "STATUS", "SERVICE", "FUNCTION", "TRIES", "ERROR"]
    assert [line.split()[0] for line in lines] == ["2", "1"]
    assert lines[0].endswith("failed  shop     shop.sync:run        3  TimeoutError: away")


def test_what_was_dealt_with_is_listed_when_it_is_asked_for(tocsin: Tocsin, put: Put) -> None:
    put(failed_job(), failed_job(), failed_job(service="crm"))

    assert tocsin("jobs").code == 0
    assert tocsin("jobs", "done", "1").out == "job 1 is done  shop.leads:push\n"

    def numbers(*options: str) -> list[int]:
        return [job["number"] for job in tocsin("jobs", "--json", *options).json["jobs"]]

    assert numbers() == [3, 2]
    assert numbers("--all") == [3, 2, 1]
    assert numbers("--status", "done") == [1]
    assert numbers("--service", "crm", "-q", "LEADS") == [3]
    first = tocsin("jobs", "--limit", "1", "--json").json
    assert numbers("--limit", "1", "--before", first["next"]) == [2]
    assert f"--before {first['next']}" in tocsin("jobs", "--limit", "1").out
    assert tocsin("jobs", "--status", "discarded").out == "no jobs\n"


def test_a_job_is_shown_with_its_arguments_and_tries(tocsin: Tocsin, put: Put, error: ErrorFactory) -> None:
    """By its number, or by its id."""
    failed = error()
    job = failed_job(
        error_id=failed.id, changed=["kwargs.token"], arguments={"args": ["7"], "kwargs": {"token": "***"}}
    )
    put(failed, job)

    said = tocsin("jobs", "show", "1").out

    assert said.splitlines()[0] == "job 1 shop.leads:push"
    for part in (
        "folder        /srv/shop",
        "failed        2026-03-14 09:26:53 UTC, TimeoutError: no answer",
        "group         #1",
        'args.0        "7"',
        'kwargs.token  "***"  (not as it was: kwargs.token)',
        "2026-03-14T09:26:50.000Z  5000 ms  TimeoutError: no answer",
        "Run it again in /srv/shop: tocsin jobs retry 1",
    ):
        assert part in said
    assert tocsin("jobs", "show", job.id).out == said
    assert tocsin("jobs", "show", "1", "--json").json["job"]["id"] == job.id


def test_several_jobs_at_once(tocsin: Tocsin, put: Put, here: str) -> None:
    """One that cannot be is said, the others are done; who did it stands in the audit."""
    put(*(failed_job() for _ in range(4)))

    answer = tocsin("jobs", "discard", "1", "3-5")
    again = tocsin("jobs", "done", "1", "--json")

    assert (answer.code, answer.out.count("is discarded"), answer.err) == (1, 3, "tocsin: there is no job 5\n")
    assert (again.code, again.json["error"]) == (1, "a job that is discarded cannot take done")
    store = open_store(here)
    (entry,) = store.read_now(audit.of_target, "job 3")
    store.close_now()
    assert (entry.action, entry.via, entry.actor.partition(":")[0]) == ("discard", "cli", "cli")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("jobs show 9", 1, "there is no job 9"),
        ("jobs show x", 2, "x: give the number of a job, such as 7, or its id"),
        ("jobs retry 9", 1, "there is no job 9"),
        ("jobs done x", 2, "x: give the number of a job, such as 42"),
        ("jobs done 9-3", 2, "give the smaller number first, and at most 1000 jobs"),
        ("jobs done", 2, "the following arguments are required: N"),
        ("jobs 7", 2, "invalid choice: '7' (choose from 'show', 'retry', 'done', 'discard')"),
        ("jobs --all --status done", 2, "--all: goes without --status"),
        ("jobs retry 1 --set token=x", 2, "--set: give an argument and its value"),
        ("jobs retry 1 --set kwargs.token", 2, "--set: give an argument and its value"),
    ],
)
def test_wrong_usage_is_said(command: str, code: int, said: str, tocsin: Tocsin, put: Put) -> None:
    put(failed_job())

    answer = tocsin(*command.split())

    assert answer.code == code
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_nothing_in_a_job_steers_a_terminal(tocsin: Tocsin, put: Put) -> None:
    evil = "\x1b[2J\u202e\nforged: line"
    texts = dict.fromkeys(("function", "message", "exception_type", "file", "folder", "service", "release"), evil)
    attempt = dict.fromkeys(("at", "type", "message"), evil)
    arguments = {"args": [evil], "kwargs": {evil: [evil]}}
    put(failed_job(**texts, arguments=arguments, attempts=[attempt], changed=[evil]))

    for command in ("jobs", "jobs show 1", "jobs done 1"):
        answer = tocsin(*command.split())
        assert answer.code == 0
        assert "\x1b" not in answer.out and "\u202e" not in answer.out
        assert not [line for line in answer.out.splitlines() if line.startswith("forged")]


# Running one again

SHOP = """
import asyncio, os, sys, tocsin
from pathlib import Path

if os.environ.get("SHOP_INIT"):
    tocsin.init(service="shop")
print("loaded")

@tocsin.protect(category="amocrm", retries=2, pause_s=0.01)
def push(lead, *, source="site", token=None):
    if not Path("there").exists():
        raise TimeoutError("no answer, token=hunter2-hunter2")
    with open("pushed", "a") as file:
        file.write(f"{lead} {source} {token}\\n")

@tocsin.protect(retries=2, pause_s=0.01)
async def push_soon(lead):
    await asyncio.sleep(0)
    push.__wrapped__(lead)

@tocsin.protect(retries=2)
def stop(how):
    print("begun", flush=True)
    if how == "exit":
        sys.exit(3)
    import time
    time.sleep(60)

@tocsin.protect(job=True)
def hold():
    import time
    while not Path("go").exists():
        time.sleep(0.02)

class Shop:
    @tocsin.protect(job=True)
    def open(self): ...

    @staticmethod
    @tocsin.protect(job=True)
    def greet(name):
        Path("pushed").write_text(name)

    @classmethod
    @tocsin.protect(job=True)
    def named(cls, name):
        Path("pushed").write_text(f"{cls.__name__} {name}")

class Branch(Shop): ...

def bare(): Path("pushed").write_text("bare")

def marked_late(): Path("pushed").write_text("late")
marked_late = tocsin.protect(marked_late)

def odd(function): return function

@odd
def decorated_otherwise(): Path("pushed").write_text("otherwise")

if __name__ == "__main__":
    for call in (lambda: push(7, token="t0ken-very-secret"), lambda: push(8), lambda: asyncio.run(push_soon(9))):
        try:
            call()
        except TimeoutError:
            pass
    tocsin.flush(10)
"""


def retry(folder: Path, database_url: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`tocsin jobs retry …` as somebody types it in a folder, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "tocsin", "jobs", "retry", *words],
        cwd=folder,
        env=environment_of(folder, database_url, **environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A service's folder, with what it pushes to still away."""
    folder = tmp_path / "srv"
    folder.mkdir()
    (folder / "shop.py").write_text(SHOP)
    return folder


def of_shop(function: str, where: Path, *args: Any, **values: Any) -> Job:
    file = str(where / "shop.py")
    kept = {"arguments": {"args": [*args], "kwargs": {}}}
    return failed_job(**{"function": function, "file": file, "folder": str(where), **kept, **values})


def pushed(folder: Path) -> str:
    return (folder / "pushed").read_text() if (folder / "pushed").exists() else ""


def test_what_a_service_could_not_do_is_done_by_hand(
    shop: Path, sqlite_url: str, tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a script's failing call to the row, and from the row to the same call: sync, async, one with a secret."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)
    run_program(shop, SHOP, sqlite_url, environ={"TOCSIN_SERVICE": "shop"})
    kept = [job_of(sqlite_url, number) for number in (1, 2, 3)]
    assert [job.function for job in kept] == ["__main__:push", "__main__:push", "__main__:push_soon"]
    assert [(job.tries, job.status, job.folder) for job in kept] == [(2, JobStatus.FAILED, str(shop))] * 3

    away = retry(shop, sqlite_url, "2")

    assert away.returncode == 1
    assert "tocsin: job 2 failed again (TimeoutError: no answer, token=" in away.stderr
    assert "hunter2" not in away.stderr + away.stdout
    assert (job_of(sqlite_url, 2).status, pushed(shop)) == (JobStatus.FAILED, "")

    (shop / "there").touch()
    secret = tocsin("jobs", "retry", "1")
    assert secret.code == 1
    assert "kwargs.token; give --set kwargs.token=…, or do it by hand" in secret.err

    given, plain = retry(shop, sqlite_url, "1", "--set", "kwargs.token=another-token"), retry(shop, sqlite_url, "2")
    assert tocsin("resolve", str(kept[2].group)).code == 0
    soon = retry(shop, sqlite_url, "3")

    assert [one.returncode for one in (given, plain, soon)] == [0, 0, 0], given.stderr + plain.stderr + soon.stderr
    assert "another-token" not in given.stdout
    assert pushed(shop) == "7 site another-token\n8 site None\n9 site None\n"
    done = [job_of(sqlite_url, number) for number in (1, 2, 3)]
    assert [job.status for job in done] == [JobStatus.DONE] * 3
    assert str(done[0].outcome).startswith("done after 0.")
    assert plain.stdout.startswith(f"job 2: __main__:push, here in {shop}\n  args.0        8\nloaded\n")
    assert f"group #{done[1].group} is still open: tocsin resolve {done[1].group}\n" in plain.stdout
    assert "resolve" not in soon.stdout
    again = tocsin("jobs", "retry", "2")
    assert (again.code, again.err) == (1, "tocsin: a job that is done cannot take retry\n")


def test_a_retry_that_fails_makes_no_further_job(shop: Path, sqlite_url: str) -> None:
    """Though the service's own code watches itself as soon as it is imported."""
    store_them(sqlite_url, of_shop("shop:push", shop, "7"))

    failed = retry(shop, sqlite_url, "1", SHOP_INIT="1")

    assert failed.returncode == 1
    assert "TimeoutError: no answer" in failed.stderr
    assert "shop.py" in failed.stderr and "jobs_cli.py" not in failed.stderr
    store = open_store(sqlite_url)
    assert store.read_now(jobs.count_failed) == 1
    assert store.read_now(groups.list_groups)[0] == []
    store.close_now()


# Which function, and with what


@pytest.fixture
def find(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Finds the function of a job of the shop, as somebody in its folder would; what it loads is forgotten again."""
    monkeypatch.chdir(shop)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda function, **values: rerun.find(shape_of(of_shop(function, shop, **values)), shop)
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("shop", "crm", "broken", "ends", "needs", "__mp_main__"):
            del sys.modules[name]


def shape_of(job: Job) -> dict[str, Any]:
    return dataclasses.asdict(job) | {"number": 1}


@pytest.mark.parametrize(
    ("function", "args", "does"),
    [
        ("shop:push", ("7",), "7 site None\n"),
        ("__main__:push", ("7",), "7 site None\n"),
        ("shop:Shop.greet", ("7",), "7"),
        ("shop:Shop.named", ("7",), "Shop 7"),
        ("shop:Branch.named", ("7",), "Branch 7"),
        ("shop:marked_late", (), "late"),
    ],
)
def test_a_function_is_found_by_its_import_path(
    shop: Path, find: Callable[..., Any], function: str, args: tuple[str, ...], does: str
) -> None:
    """Also what stands in a class, or in a script, which is loaded and not run."""
    (shop / "there").touch()

    find(function)(*args)

    assert pushed(shop) == does


def test_a_function_is_found_in_packages_wherever_finders_look(
    shop: Path, find: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an editable installation leaves them; also in a folder without an `__init__.py`."""
    package = shop.parent / "src" / "crm"
    (package / "sync").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sync" / "leads.py").write_text(PROTECTED)

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return spec_from_file_location(name, package / "__init__.py") if name == "crm" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])

    assert find("crm.sync.leads:run").__module__ == "crm.sync.leads"


def test_a_script_of_a_release_before_is_found_in_the_one_of_now(shop: Path, find: Callable[..., Any]) -> None:
    """The one in which it failed may still be there, and its code may still be wrong."""
    before = shop.parent / "before"
    before.mkdir()
    (before / "shop.py").write_text(SHOP.replace("pushed", "wrong"))
    (shop / "there").touch()

    find("__main__:push", file=str(before / "shop.py"), folder=str(before))("7")

    assert pushed(shop) == "7 site None\n"


@pytest.mark.parametrize(
    ("function", "values", "said"),
    [
        ("shop:bare", {}, "bare in {shop}/shop.py is not protected by tocsin"),
        ("shop:gone", {}, "there is no function gone in {shop}/shop.py any more"),
        ("shop:Shop.gone", {}, "there is no function Shop.gone"),
        ("shop:push.<locals>.inner", {}, "it was made inside another function"),
        ("shop push", {}, "cannot be found by its name"),
        ("os:system", {}, "there is no function system"),
        ("antigravity:geohash", {}, "antigravity.py is not protected by tocsin"),
        ("posix:system", {}, "there is no module posix here: run it in /srv/elsewhere, with that service's Python"),
        ("crm.sync:run", {}, "there is no module crm.sync here: run it in /srv/elsewhere"),
        ("__main__:push", {"file": "{shop}/../other.py"}, "is not in this folder: run it in /srv/elsewhere"),
        ("__main__:push", {"file": None}, "whose file is not known"),
        ("__main__:push", {"file": "{shop}/gone.py"}, "is not there any more"),
        ("__main__:run", {"file": "{shop}/all.py"}, "would run as a whole"),
        ("torn:run", {}, "has no Python that could be run: line 1"),
    ],
)
def test_nothing_is_imported_for_a_row_that_names_what_is_not_protected(
    shop: Path, find: Callable[..., Any], function: str, values: dict[str, Any], said: str
) -> None:
    """A row may name anything, and importing is running."""
    (shop / "all.py").write_text(PROTECTED + "run()\n")
    (shop / "torn.py").write_text("def run(:\n")
    (shop.parent / "other.py").write_text(SHOP)
    placed = {key: value and value.format(shop=shop) for key, value in values.items()}
    before = {*sys.modules}

    with pytest.raises(rerun.CannotRun) as refused:
        find(function, **{"folder": "/srv/elsewhere", **placed})

    assert said.replace("{shop}", str(shop)) in str(refused.value)
    assert sys.modules.keys() - before == set()
    assert pushed(shop) == ""


PROTECTED = "import tocsin\n@tocsin.protect(job=True)\ndef run(*args): open('pushed', 'w')\n"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("shop:decorated_otherwise", "shop:decorated_otherwise is not protected by tocsin"),
        ("broken:run", "broken cannot be imported here (RuntimeError: no database): run it in /srv/elsewhere"),
        ("ends:run", "ends cannot be imported here (SystemExit: 3)"),
        ("needs:run", "needs cannot be imported here (ModuleNotFoundError: No module named 'crm')"),
    ],
)
def test_what_turns_out_not_to_be_protected_is_not_called(
    shop: Path, find: Callable[..., Any], function: str, said: str
) -> None:
    for name, end in (("broken", "raise RuntimeError('no database')"), ("ends", "exit(3)"), ("needs", "import crm")):
        (shop / f"{name}.py").write_text(f"{PROTECTED}{end}\n")

    with pytest.raises(rerun.CannotRun) as refused:
        find(function, folder="/srv/elsewhere")

    assert said in str(refused.value)
    assert pushed(shop) == ""


ARGUMENTS = {"args": [{"id": "***"}, 2], "kwargs": {"source": "site"}}


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (["args.0.id=7"], [{"id": 7}, 2], {"source": "site"}),
        (["args.0=text"], ["text", 2], {"source": "site"}),
        (["args.0=x", "args.2=null", "kwargs.source={"], ["x", 2, None], {"source": "{"}),
        (["args=[1]", "kwargs.more=a=b"], [1], {"source": "site", "more": "a=b"}),
        (["args.0.id=", 'kwargs={"a": true}'], [{"id": ""}, 2], {"a": True}),
    ],
)
def test_given_arguments_stand_in_for_what_is_kept(given: list[str], args: list[Any], kwargs: dict[str, Any]) -> None:
    """As JSON, or else as text; the row itself stays as it is."""
    shape = shape_of(failed_job(arguments=ARGUMENTS, changed=["args.0.id"]))

    assert rerun.arguments_of(shape, rerun.given_of(given)) == (args, kwargs)
    assert shape["arguments"] == ARGUMENTS


@pytest.mark.parametrize(
    ("values", "given", "said"),
    [
        ({"changed": ["args.0", "kwargs.a.b"]}, [], "args.0, kwargs.a.b; give --set args.0=… --set kwargs.a.b=…, or"),
        (
            {"changed": ["args.0", "kwargs.a.b"]},
            ["args.0=1", "kwargs.a.b.c=1"],
            "kwargs.a.b; give --set kwargs.a.b=…, or",
        ),
        ({"changed": ["arguments"]}, ["args=[1]"], "arguments; give --set args=[…] --set kwargs={…}, or"),
        ({"changed": "odd"}, [], "arguments; give"),
        ({"changed": [f"args.{at}" for at in range(50)]}, [f"args.{at}=1" for at in range(3)], "arguments; give"),
        ({"arguments": ["7"]}, [], "has no arguments that could be called with"),
        ({"arguments": {"args": None, "kwargs": None}}, [], "has no arguments that could be called with"),
        ({}, ["args.7.x=1"], "--set: there is no args.7.x in the arguments"),
        ({}, ["kwargs.source.x=1"], "--set: there is no kwargs.source.x in the arguments"),
    ],
)
def test_arguments_that_cannot_be_called_with_are_refused(values: dict[str, Any], given: list[str], said: str) -> None:
    """Each is named, with what to give."""
    with pytest.raises((rerun.CannotRun, BadInput)) as refused:
        rerun.arguments_of(shape_of(failed_job(**values)), rerun.given_of(given))

    assert said in str(refused.value)


# What may come between


def start_retry(folder: Path, database_url: str, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tocsin", "jobs", "retry", *words],
        cwd=folder,
        env=environment_of(folder, database_url),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("kind", "number"), [("sqlite", signal.SIGINT), ("postgres", signal.SIGTERM)])
def test_a_run_that_is_interrupted_leaves_the_job_as_it_was(
    shop: Path, request: pytest.FixtureRequest, kind: str, number: signal.Signals
) -> None:
    """While it runs, nobody else can run it, and whoever looks sees who does."""
    database_url = request.getfixturevalue(f"{kind}_url")
    store_them(database_url, of_shop("shop:stop", shop, "sleep"))
    with start_retry(shop, database_url, "1") as running:
        assert running.stdout is not None
        assert next(line for line in running.stdout if line == "begun\n")
        who = job_of(database_url).acted_by
        second = retry(shop, database_url, "1") if kind == "sqlite" else None
        running.send_signal(number)
        _, stderr = running.communicate(timeout=30)

    assert f"process {running.pid}" in str(who)
    if second is not None:
        assert second.returncode == 1
        assert f"tocsin: job 1 is being run by {who}" in second.stderr
    assert running.returncode == 128 + number
    assert "tocsin: job 1 failed again (interrupted after" in stderr
    assert job_of(database_url).status is JobStatus.FAILED


def test_a_long_run_says_that_it_goes_on(
    shop: Path, here: str, find: Callable[..., Any], tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else somebody would take it for dead, and run it a second time."""
    monkeypatch.setattr(jobs_cli, "KEEP_EVERY_S", 0.05)
    store_them(here, of_shop("shop:hold", shop))
    heard: list[Any] = []

    def listen() -> None:
        try:
            eventually(lambda: job_of(here).status is JobStatus.RUNNING, 30)
            first = job_of(here).acted_at
            heard.append(eventually(lambda: job_of(here).acted_at != first, 30))
        finally:
            (shop / "go").touch()

    listening = threading.Thread(target=listen)
    listening.start()
    done = tocsin("jobs", "retry", "1", "--yes")
    listening.join(60)

    assert (done.code, heard) == (0, [True]), done.err


def test_a_function_that_exits_has_failed(shop: Path, sqlite_url: str) -> None:
    """Only what comes back is done. And a terminal is asked before it is run."""
    store_them(sqlite_url, of_shop("shop:stop", shop, "exit"))
    ours, theirs = pty.openpty()
    with start_retry(shop, sqlite_url, "1", stdin=theirs) as running:
        os.write(ours, b"y\n")
        stdout, _ = running.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)

    assert "Run it? [y/N]" in stdout
    assert (running.returncode, job_of(sqlite_url).status) == (1, JobStatus.FAILED)
    assert job_of(sqlite_url).outcome == "SystemExit: 3"


@pytest.mark.parametrize("answer", ["\n", "n\n", "yesterday\n", "\x04"])
def test_a_terminal_that_does_not_agree_runs_nothing(
    shop: Path, sqlite_url: str, answer: str, tocsin: Tocsin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row may ask for anything: a person sees what it is first."""
    monkeypatch.setenv("TOCSIN_DATABASE_URL", sqlite_url)
    monkeypatch.chdir(shop)
    store_them(sqlite_url, of_shop("shop:push", shop, "7"))
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    with open(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        said = tocsin("jobs", "retry", "1")
    os.close(ours)

    assert said.code == 1
    assert f"job 1: shop:push, here in {shop}" in said.out
    assert said.out.endswith("nothing was run\n")
    assert job_of(sqlite_url).status is JobStatus.FAILED


# By way of a server


@pytest.fixture
def server(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that the settings name, and nothing else."""
    settings = Settings(
        database_url=sqlite_url, spool_dir=str(tmp_path / "server"), alert_environments=("none",), token="full-token"
    )
    with open_house(settings) as address:
        monkeypatch.setenv("TOCSIN_ENDPOINT", address)
        monkeypatch.setenv("TOCSIN_TOKEN", "full-token")
        yield address


def test_a_server_tells_what_the_database_tells(
    tocsin: Tocsin, server: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the letter, for people and for scripts, failures too."""
    store_them(sqlite_url, failed_job(), failed_job(function="crm:sync", service="crm"), failed_job())
    tocsin("jobs", "done", "3")

    for line in (
        "jobs",
        "jobs --all --limit 2",
        "jobs --status done --service shop -q LEADS",
        "jobs show 3",
        "jobs show 9",
        "jobs show 0190a8f0-0000-7000-8000-000000000001",
        "jobs done 9",
        "jobs discard 3",
    ):
        for form in ((), ("--json",)):
            there = tocsin(*line.split(), *form)
            with monkeypatch.context() as changed:
                changed.setenv("TOCSIN_DATABASE_URL", sqlite_url)
                assert tocsin(*line.split(), *form) == there, line


def test_a_job_of_a_server_is_run_where_its_code_is(shop: Path, server: str, sqlite_url: str, tocsin: Tocsin) -> None:
    """The server is told that it is done; a run that fails leaves it as it was."""
    environ = {"TOCSIN_ENDPOINT": server, "TOCSIN_TOKEN": "full-token", "TOCSIN_DATABASE_URL": ""}
    store_them(sqlite_url, of_shop("shop:push", shop, "7"))

    away = retry(shop, "", "1", **environ)
    (shop / "there").touch()
    done = retry(shop, "", "1", **environ)
    again = tocsin("jobs", "retry", "1")

    assert (away.returncode, done.returncode, again.code) == (1, 0, 1), away.stderr + done.stderr
    assert again.err == "tocsin: a job that is done cannot take retry\n"
    assert (job_of(sqlite_url).status, job_of(sqlite_url).acted_by) == (JobStatus.DONE, "token: full")
    assert pushed(shop) == "7 site None\n"


def test_a_run_whose_end_cannot_be_noted_is_told(shop: Path, server: str, sqlite_url: str) -> None:
    """With what to do: it must not be done twice."""
    environ = {"TOCSIN_ENDPOINT": server, "TOCSIN_TOKEN": "full-token", "TOCSIN_DATABASE_URL": ""}
    store_them(sqlite_url, of_shop("shop:Shop.greet", shop, "7"))
    (shop / "shop.py").write_text(SHOP.replace('Path("pushed").write_text(name)', DISCARDS.format(url=sqlite_url)))

    done = retry(shop, "", "1", **environ)

    assert done.returncode == 1
    assert "which could not be noted: a job that is discarded cannot take done" in done.stderr
    assert "say `tocsin jobs done 1`" in done.stderr


DISCARDS = """
        from tocsin.lifecycle import JobTrigger
        from tocsin.store import jobs, open_store
        store = open_store("{url}")
        store.write_now(jobs.act, 1, JobTrigger.DISCARD, by="@boris", via="telegram")
        store.close_now()
"""
