"""`tocsin run`: users' programs, unchanged, as real processes on both databases."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import (
    ROOT,
    Service,
    drain_rest,
    environment_of,
    errors_in,
    rows_of,
    run_command,
    run_program,
)
from tocsin.run import has_tocsin, interpreter_of

ROUTES = """
import asyncio, logging, threading
log = logging.getLogger("shop")

def fail(exc):
    raise exc

def in_thread():
    thread = threading.Thread(target=fail, args=[ValueError("in thread")])
    thread.start()
    thread.join()

async def task_that_fails():
    fail(LookupError("in task"))

def logs():
    try:
        int("x")
    except ValueError:
        log.exception("cannot do %s", "it")

def thrice():
    import tocsin
    try:
        fail(OSError("thrice"))
    except OSError as exc:
        log.exception("seen")
        tocsin.track_error(exc, "high", "amocrm", {"lead_id": "123"})
        raise

def pair():
    in_thread()
    fail(TypeError("pair"))
"""

FASTAPI = (
    ROUTES
    + """
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import JSONResponse

app, router, sub = FastAPI(), APIRouter(), FastAPI()

@app.get("/ok")
async def ok(): return {}
@app.get("/boom/{x}")
async def boom(x: int): return 1 / 0
@app.get("/sync/{x}")
def sync(x: int): raise KeyError("phone")
@app.get("/background")
async def background(tasks: BackgroundTasks): tasks.add_task(fail, RuntimeError("in background")); return {}
@app.get("/thread")
async def thread(): in_thread(); return {}
@app.get("/task")
async def task(): asyncio.create_task(task_that_fails()); return {}
@app.get("/logged")
async def logged(): logs(); return {}
@app.get("/thrice")
async def three(): thrice()
@app.get("/pair")
async def two(): pair()
@app.get("/unavailable")
async def unavailable(): raise HTTPException(503, "sorry")
@app.get("/plain")
async def plain(): return JSONResponse({}, 500)
@app.get("/gone/{x}")
async def gone(x: int): raise HTTPException(404)
@router.get("/inner/{y}")
async def inner(y: int): fail(ArithmeticError("in router"))
@sub.get("/inner/{y}")
async def mounted(y: int): fail(BufferError("in mounted"))
app.include_router(router, prefix="/prefix")
app.mount("/sub", sub)
"""
)

STARLETTE = (
    ROUTES
    + """
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

def answer(status=200, background=None): return JSONResponse({}, status, background=background)
async def ok(request): return answer()
async def boom(request): return 1 / 0
def sync(request): raise KeyError("phone")
async def background(request): return answer(background=BackgroundTask(fail, RuntimeError("in background")))
async def thread(request): in_thread(); return answer()
async def task(request): asyncio.create_task(task_that_fails()); return answer()
async def logged(request): logs(); return answer()
async def three(request): thrice()
async def two(request): pair()
async def unavailable(request): raise HTTPException(503, "sorry")
async def plain(request): return answer(500)
async def gone(request): raise HTTPException(404)
async def inner(request): fail(ArithmeticError("in router"))
async def mounted(request): fail(BufferError("in mounted"))
app = Starlette(routes=[
    Route("/ok", ok), Route("/boom/{x}", boom), Route("/sync/{x}", sync), Route("/background", background),
    Route("/thread", thread), Route("/task", task), Route("/logged", logged), Route("/thrice", three),
    Route("/pair", two), Route("/unavailable", unavailable), Route("/plain", plain), Route("/gone/{x}", gone),
    Mount("/prefix", routes=[Route("/inner/{y}", inner)]),
    Mount("/sub", Starlette(routes=[Route("/inner/{y}", mounted)])),
])
"""
)


@dataclass(frozen=True)
class Failing:
    """A call that fails, and what its row must say."""

    path: str
    status: int
    type: str | None
    message: str
    handled: bool
    route: str = ""
    category: str | None = None


FAILING = [
    Failing("/boom/1", 500, "ZeroDivisionError", "division by zero", False, "/boom/{x}"),
    Failing("/boom/2", 500, "ZeroDivisionError", "division by zero", False, "/boom/{x}"),
    Failing("/sync/1", 500, "KeyError", "'phone'", False, "/sync/{x}"),
    Failing("/background", 200, "RuntimeError", "in background", False),
    Failing("/thread", 200, "ValueError", "in thread", False),
    Failing("/task", 200, "LookupError", "in task", False),
    Failing("/logged", 200, "ValueError", "invalid literal for int() with base 10: 'x'", True),
    Failing("/thrice", 500, "OSError", "thrice", False, category="amocrm"),
    Failing("/unavailable", 503, "HTTPException", "503: sorry", True),
    Failing("/plain", 500, None, "GET /plain answered 500", False),
    Failing("/prefix/inner/1", 500, "ArithmeticError", "in router", False, "/prefix/inner/{y}"),
    Failing("/sub/inner/1", 500, "BufferError", "in mounted", False, "/sub/inner/{y}"),
]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def commit(folder: Path) -> None:
    """A git repository as `git commit` leaves it."""
    (folder / ".git" / "refs" / "heads").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git" / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")


def serve(folder: Path, database_url: str, code: str, *options: str, run: tuple[str, ...] = (), **env: str) -> Service:
    (folder / "app.py").write_text(code)
    return Service(folder, database_url, *run, "--", "uvicorn", "app:app", "--port", "0", *options, **env)


@pytest.mark.parametrize(
    ("code", "database_url"),
    [
        pytest.param(FASTAPI, "postgresql", id="fastapi-postgresql"),
        pytest.param(STARLETTE, "sqlite", id="starlette-sqlite"),
        pytest.param(FASTAPI, "sqlite", id="fastapi-sqlite", marks=pytest.mark.gate),
        pytest.param(STARLETTE, "postgresql", id="starlette-postgresql", marks=pytest.mark.gate),
    ],
    indirect=["database_url"],
)
def test_each_failing_call_of_an_unchanged_service_is_one_row(code: str, tmp_path: Path, database_url: str) -> None:
    """With type, message, stack, service, environment, release, and its request; what succeeds gives none."""
    commit(tmp_path)
    with serve(tmp_path, database_url, code, TOCSIN_ENVIRONMENT="staging", TOCSIN_SERVICE="shop") as service:
        assert service.get("/ok") == 200
        for number, call in enumerate(FAILING, 1):
            assert service.get(call.path, trace_id=f"{number:032x}") == call.status, call
        assert service.get("/gone/1") == 404
        assert service.get("/nowhere") == 404
        assert service.get("/ok") == 200
        service.wait_for(len(FAILING))
        assert service.stop() == 0

    rows = {row.trace_id: row for row in rows_of(database_url)}
    assert sum(row.count for row in rows.values()) == len(FAILING)
    for number, call in enumerate(FAILING, 1):
        row = rows[f"{number:032x}"]
        assert (row.exception_type or "").rpartition(".")[2] == (call.type or ""), call
        assert row.message == call.message
        assert row.handled is call.handled, call
        assert (row.service, row.environment, row.release) == ("shop", "staging", COMMIT[:12])
        assert row.context["http.route"] == (call.route or call.path)
        assert row.context["http.request.method"] == "GET"
        if call.type:
            assert row.stack.startswith("Traceback (most recent call last):\n")
            assert row.stack.rstrip().endswith(call.message)
        if call.category:
            assert row.category == call.category
            assert row.context["lead_id"] == "123"


def test_a_request_and_its_thread_share_a_trace_that_is_made_when_none_came(tmp_path: Path, sqlite_url: str) -> None:
    with serve(tmp_path, sqlite_url, FASTAPI, "--loop", "asyncio") as service:
        service.get("/pair")
        service.get("/pair")
        service.wait_for(4)

    rows = rows_of(sqlite_url)
    traces = [{row.trace_id for row in rows if row.exception_type == kind} for kind in ("ValueError", "TypeError")]
    assert traces[0] == traces[1]
    assert len(traces[0]) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces[0])


def test_errors_of_every_worker_are_counted(tmp_path: Path, sqlite_url: str) -> None:
    """Workers are spawned: each starts tocsin for itself, and a storm is summed up without a loss."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serve(tmp_path, sqlite_url, FASTAPI, "--workers", "2", "--port", str(port)) as service:
        for number in range(30):
            assert service.get(f"/boom/{number}") == 500
        service.wait_for(30)

    assert errors_in(sqlite_url) == 30


def test_traces_add_the_span_to_each_error(tmp_path: Path, sqlite_url: str) -> None:
    """`--traces`: the trace goes on from the header, and the span's attributes are in the context."""
    with serve(tmp_path, sqlite_url, STARLETTE, run=("--traces",)) as service:
        service.get("/boom/1", trace_id="ab" * 16)
        service.get("/thread", trace_id="cd" * 16)
        service.wait_for(2)

    boom, thread = rows_of(sqlite_url)
    assert (boom.trace_id, thread.trace_id) == ("ab" * 16, "cd" * 16)
    assert re.fullmatch("[0-9a-f]{16}", boom.span_id)
    assert boom.span_id != "00f067aa0ba902b7"
    assert "http.scheme" in boom.context or "url.scheme" in boom.context
    assert boom.context.get("http.host") or boom.context.get("server.address")


LIFESPAN = """
from contextlib import asynccontextmanager
from fastapi import FastAPI

@asynccontextmanager
async def lifespan(app):
    raise RuntimeError("no database")
    yield

app = FastAPI(lifespan=lifespan)
"""


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        pytest.param(LIFESPAN, "RuntimeError", id="lifespan"),
        # The rest of its rows: `tests/reliability/ways.py`
        pytest.param("import no_such_module_of_ours\n", "ModuleNotFoundError", id="import", marks=pytest.mark.gate),
        pytest.param("x = (", "SyntaxError", id="syntax", marks=pytest.mark.gate),
    ],
)
def test_a_service_that_cannot_start_says_why_and_ends_as_ever(
    code: str, kind: str, tmp_path: Path, sqlite_url: str
) -> None:
    """Its exit code is what it would be without tocsin."""
    (tmp_path / "app.py").write_text(code)
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "0"]

    plain = run_command(tmp_path, command, sqlite_url)
    done = run_command(tmp_path, [sys.executable, "-m", "tocsin", "run", "--", *command], sqlite_url)
    drain_rest(tmp_path, sqlite_url)

    assert done.returncode == plain.returncode != 0
    assert [(row.exception_type, row.severity) for row in rows_of(sqlite_url)] == [(kind, "critical")], done.stderr


UNCAUGHT = "def main():\n    raise ValueError('the end')\n\nmain()\n"


def test_a_program_that_dies_of_an_exception_is_critical_and_dies_as_ever(tmp_path: Path, sqlite_url: str) -> None:
    """Exit code 1, and the same traceback on stderr."""
    plain = run_program(tmp_path, UNCAUGHT, sqlite_url, command=())

    done = run_program(tmp_path, UNCAUGHT, sqlite_url)

    assert done.returncode == plain.returncode == 1
    assert plain.stderr in done.stderr
    (row,) = rows_of(sqlite_url)
    assert (row.exception_type, row.message, row.severity, row.handled) == ("ValueError", "the end", "critical", False)
    assert row.service == "program"


def test_one_line_at_start_says_where_errors_go(tmp_path: Path, sqlite_url: str) -> None:
    done = run_program(tmp_path, "print('hello')", sqlite_url)

    assert done.stdout == "hello\n"
    path = sqlite_url.removeprefix("sqlite:///")
    assert done.stderr.splitlines() == [
        f"tocsin: watching program (production); errors go to SQLite {path}, but no server reads there: "
        "nothing will ring until 'tocsin serve' runs on the same database"
    ]


def test_a_misspelt_setting_is_said_once_with_the_nearest_name(tmp_path: Path, sqlite_url: str) -> None:
    """The program starts all the same."""
    done = run_program(tmp_path, UNCAUGHT, sqlite_url, environ={"TOCSIN_LOG_LEVL": "warning"})

    assert done.stderr.count("TOCSIN_LOG_LEVL") == 1
    assert "did you mean TOCSIN_LOG_LEVEL?" in done.stderr
    assert len(rows_of(sqlite_url)) == 1


def test_a_wrong_database_url_leaves_the_default(tmp_path: Path) -> None:
    default = f"sqlite:///{tmp_path}/.local/state/tocsin/tocsin.db"

    done = run_program(
        tmp_path, UNCAUGHT, "mysql://user:geheim77@host/shop", is_drained=False, environ={"XDG_STATE_HOME": ""}
    )

    drain_rest(tmp_path, default)
    assert done.stderr.count("TOCSIN_DATABASE_URL: ") == 1
    assert "geheim77" not in done.stderr
    assert [row.message for row in rows_of(default)] == ["the end"]


def test_a_spool_folder_that_cannot_be_made_is_replaced(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "file").write_text("")

    wrong = str(tmp_path / "file" / "spool")
    done = run_program(tmp_path, UNCAUGHT, sqlite_url, is_drained=False, environ={"TOCSIN_SPOOL_DIR": wrong})

    assert "the spool folder" in done.stderr
    left = tmp_path / "tmp" / f"tocsin-{os.getuid()}"
    if (left / "spool").exists():
        drain_rest(left, sqlite_url)
    assert [row.message for row in rows_of(sqlite_url)] == ["the end"]


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("./folder", 126)])
def test_a_program_that_cannot_be_run_gives_the_shell_s_code(
    command: str, code: int, tmp_path: Path, sqlite_url: str
) -> None:
    (tmp_path / "folder").mkdir()

    done = run_command(tmp_path, [sys.executable, "-m", "tocsin", "run", "--", command], sqlite_url)

    assert done.returncode == code
    assert repr(command) in done.stderr


def test_a_sitecustomize_of_the_machine_runs_as_well(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "sitecustomize.py").write_text("print('custom')\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path / "lib")])

    done = run_program(tmp_path, UNCAUGHT, sqlite_url, environ={"PYTHONPATH": path})

    assert done.stdout == "custom\n" * 2  # once for tocsin's own interpreter
    assert len(rows_of(sqlite_url)) == 1


WAITING = """
import pathlib, time
spool = pathlib.Path("spool")
until = time.monotonic() + 20
while len(list(spool.glob("*.seg"))) > 1 and time.monotonic() < until:
    time.sleep(0.02)
"""


def test_what_a_killed_program_left_is_stored_by_the_next(tmp_path: Path, sqlite_url: str) -> None:
    """The database is away while the first one lives, and it is killed without a warning."""
    away = f"{sqlite_url.replace('tocsin.db', 'missing/folder')}"
    dying = "import logging, os, signal\nlogging.error('last words')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "missing").write_text("")

    assert run_program(tmp_path, dying, away, is_drained=False).returncode == -9
    assert list((tmp_path / "spool").glob("*.seg")) != []
    assert run_program(tmp_path, WAITING, sqlite_url, is_drained=False).returncode == 0

    found = {row.message for row in rows_of(sqlite_url)}
    assert found == {"last words", "python program.py was killed by SIGKILL"}


SECRETS = {
    "message": "pa55-w0rd-one",
    "context": "pa55-w0rd-two",
    "header": "pa55-w0rd-three",
    "query": "pa55-w0rd-four",
    "cookie": "pa55-w0rd-five",
    "url": "pa55-w0rd-six",
    "extra": "pa55-w0rd-seven",
    "source": "pa55-w0rd-eight",
    "cause": "pa55-w0rd-nine",
    "bearer": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "card": "4111 1111 1111 1111",
    "database": "pa55-w0rd-ten",
    "own": "pa55-w0rd-eleven",
    "note": "pa55-w0rd-twelve",
    "path": "pa55-w0rd-thirteen",
    "group": "pa55-w0rd-fourteen",
}

LEAKING = """
import logging, sys
from fastapi import FastAPI
import tocsin
app = FastAPI()
log = logging.getLogger("shop")
log.addHandler(logging.NullHandler())
log.propagate = False
S = {secrets!r}

@app.get("/boom/{{rest:path}}")
async def boom(rest: str):
    try:
        raise OSError(f"cannot reach postgresql://shop:{{S['database']}}@db/shop with token={{S['cause']}}")
    except OSError as cause:
        with tocsin.context(password=S["context"], nested={{"api_key": S["context"]}}, card=S["card"]):
            exc = RuntimeError(
                f"password={{S['message']}} Authorization: Bearer {{S['bearer']}} {{S['own']}} {{S['card']}}"
            )
            exc.add_note(f"password: {{S['note']}}")
            password = "pa55-w0rd-eight"; raise exc from cause

@app.get("/log")
async def logged():
    log.error("login with password=%s at https://u:%s@x.io/", S["message"], S["url"],
              extra={{"secret": S["extra"], "url": f"https://x.io/?access_token={{S['extra']}}"}})
    facts = {{"cookie": S["cookie"], "headers": {{"Authorization": "Bearer " + S["header"]}}}}
    tocsin.track_error(f"sent Cookie: session={{S['cookie']}}", context=facts)
    tocsin.track_error(ExceptionGroup("many", [ValueError(f"password={{S['group']}}")]))
    return {{}}
"""


def test_planted_secrets_are_in_no_file_and_no_line(tmp_path: Path, sqlite_url: str) -> None:
    """Looked for in every file of the run, spool and write-ahead log included, while it runs and after it."""
    code = LEAKING.format(secrets=SECRETS)
    found: set[tuple[str, str]] = set()

    def look() -> None:
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.name not in {"app.py", "output.txt"} and "__pycache__" not in path.parts:
                data = path.read_bytes()
                found.update((path.name, name) for name, secret in SECRETS.items() if secret.encode() in data)

    with serve(tmp_path, sqlite_url, code, TOCSIN_INGEST_TOKEN=SECRETS["own"]) as service:
        address = f"/boom/x?token={SECRETS['query']}&password={SECRETS['query']}&next=https://u:{SECRETS['url']}@x.io/"
        headers = {
            "Authorization": f"Bearer {SECRETS['header']}",
            "Cookie": f"session={SECRETS['cookie']}",
            "X_Api_Key": SECRETS["header"],
            "Referer": f"https://shop.example/?token={SECRETS['query']}",
        }
        service.get(address, **headers)
        service.get(f"/boom/token={SECRETS['path']}", **headers)
        service.get("/log", **headers)
        look()
        service.wait_for(5)
        look()
    look()

    assert len(rows_of(sqlite_url)) == 5
    assert found == set()
    ours = "\n".join(line for line in service.said().splitlines() if re.match("tocsin|HIGH|CRIT|MEDIUM|LOW", line))
    assert [name for name, secret in SECRETS.items() if secret in ours] == []
    assert ours.count("#") >= 4


@pytest.mark.parametrize(
    ("name", "text", "is_one"),
    [
        ("app", "#!/usr/bin/python3\n", True),
        ("app", "#!/usr/bin/env python3.12\n", True),
        ("app", "#!/usr/bin/env -S python -u\n", True),
        ("app", "#!/opt/shop/.venv/bin/python\n", True),
        ("app", "#!/bin/sh\n'''exec' \"/a long way/bin/python\" \"$0\" \"$@\"\n' '''\nimport sys\n", True),
        ("pypy3.10", "", True),
        ("app", "#!/bin/sh\nexec python app.py\n", False),
        ("app", "#!/usr/bin/env node\n", False),
        ("app", "\x7fELF", False),
        ("app", "", False),
    ],
)
def test_what_python_runs_is_told_from_other_programs(name: str, text: str, is_one: bool, tmp_path: Path) -> None:
    """The former tell of their errors by themselves."""
    (tmp_path / name).write_text(text)

    assert (interpreter_of(tmp_path / name) is not None) is is_one


def test_a_script_names_its_interpreter(tmp_path: Path) -> None:
    """Also where the way to it is too long for the system's first line, and an installer wrote a shell's."""
    (tmp_path / "short").write_text("#!/opt/shop/venv/bin/python3\n")
    (tmp_path / "long").write_text("#!/bin/sh\n'''exec' \"/a long/venv/bin/python\" \"$0\" \"$@\"\n' '''\n")

    assert interpreter_of(tmp_path / "short") == Path("/opt/shop/venv/bin/python3")
    assert interpreter_of(tmp_path / "long") == Path("/a long/venv/bin/python")


def test_a_python_has_tocsin_where_it_is_installed_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    packages = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)

    assert has_tocsin(Path(sys.executable))
    assert not has_tocsin(tmp_path / "venv" / "bin" / "python")
    (packages / "tocsin-0.1.0.dist-info").mkdir()
    assert has_tocsin(tmp_path / "venv" / "bin" / "python")


def test_a_python_without_tocsin_is_watched_from_outside(tmp_path: Path, sqlite_url: str) -> None:
    """A venv of its own: the start line says what is missing, and the exception that ends it is told all the same."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "venv"], cwd=tmp_path, check=True)
    (tmp_path / "program.py").write_text(UNCAUGHT)
    python = tmp_path / "venv" / "bin" / "python"
    command = [sys.executable, "-P", "-m", "tocsin", "run", "--", str(python), "program.py"]

    done = run_command(tmp_path, command, sqlite_url, PYTHONPATH="")
    drain_rest(tmp_path, sqlite_url)

    assert done.returncode == 1
    assert f"has no tocsin: {python} -m pip install {ROOT}\n" in done.stderr
    assert [(row.exception_type, row.message, row.mechanism) for row in rows_of(sqlite_url)] == [
        ("ValueError", "the end", "process-exit")
    ]


def test_a_python_program_finds_nothing_of_what_its_parent_tells_it(tmp_path: Path, sqlite_url: str) -> None:
    """What the parent says is for the program alone: whatever it starts has another parent."""
    (tmp_path / "app").write_text(f"#!{sys.executable}\nimport os; print(os.getppid(), *sorted(os.environ))\n")
    (tmp_path / "app").chmod(0o755)

    with subprocess.Popen(
        [sys.executable, "-m", "tocsin", "run", "--", "./app"],
        cwd=tmp_path,
        env=environment_of(tmp_path, sqlite_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        parent, *names = process.communicate()[0].split()

    assert int(parent) == process.pid
    assert {"OTEL_SERVICE_NAME", "TOCSIN_WATCHER", "TOCSIN_INSTANCE", "TOCSIN_RUN_PATH"}.isdisjoint(names)
