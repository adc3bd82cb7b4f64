"""The plan of the house: who may import whom, and how little a service loads that only captures."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tocsin"

GROUND = {
    "allocator",
    "beats",
    "clock",
    "contained",
    "dotenv",
    "failures",
    "ids",
    "install",
    "lifecycle",
    "loading",
    "model",
    "packing",
    "requests",
    "semconv",
    "settings",
    "spans",
    "text",
    "wire",
}
"""Files with the words of the house; they know the standard library and each other."""

ROOMS = {
    "store": set(),
    "exporter": {"store"},
    "instrumentation": {"exporter"},
    "alerts": {"store", "exporter"},  # what another program wrote is scrubbed and read as the exporter does
    "api": {"alerts", "store", "exporter"},  # what arrives by HTTP is decoded as the exporter does
    "demo": {"store"},
}
"""Every room may use the words; another room only where this draws a door."""

TOP = {
    "__main__",
    "checks",
    "cli",
    "cron",
    "deaths",
    "destination",
    "jobs_cli",
    "local",
    "prune",
    "remote",
    "rerun",
    "run",
    "serve",
    "supervisors",
    "terminal",
    "watch",
}
"""What composes the rooms; no room imports from here, but for the terminal's words in the demo."""

OPTIONAL = {
    *("aiosmtplib", "alembic", "apscheduler", "asyncpg", "fastapi", "httpx", "jinja2", "opentelemetry", "psutil"),
    *("redis", "sqlalchemy", "starlette", "telegram", "uvicorn", "uvloop", "wrapt"),
}
"""Libraries that may be imported late: an extra, or a price that not everyone shall pay."""

LATE = {
    "__init__.py": "",  #  the front door, so that it is light
    "cli.py": "",  #  so that a command loads what it needs
    "run.py": "destination",  #  the program starts first
    "cron.py": "store",  #  a job shall start
    "checks.py": "alerts",  #  the libraries of its channels are optional
    "exporter/database.py": "store",  #  a service loads SQLAlchemy at its first error
    "exporter/drain.py": "exporter",  #  what stores an error is loaded at the first one: a program shall start
    "instrumentation/memory.py": "instrumentation",  # what grew is asked once in a life, and mostly never
    "instrumentation/startup/sitecustomize.py": "instrumentation",  # nothing of ours may stop an interpreter
}
"""Files that may import some of our own modules late."""


def files_of(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py"))


def imports_of(tree: ast.AST, path: Path) -> Iterator[str]:
    """The modules that some code imports, by their full names; what is only for the type checker is none."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = path.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level]
                base = ".".join([*inside, *filter(None, [base])])
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)
        else:
            yield from imports_of(node, path)


def doors_of(path: Path) -> set[str]:
    """The rooms and files of ours that a file imports."""
    names = (name.split(".") for name in imports_of(ast.parse(path.read_text()), path))
    known = ROOMS.keys() | GROUND | TOP
    return {parts[1] for parts in names if parts[0] == "tocsin" and len(parts) > 1 and parts[1] in known}


def test_the_plan_knows_every_file_and_room() -> None:
    """A new one is given its place here first."""
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

    assert files == GROUND | TOP
    assert rooms == ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_opens_only_its_own_doors(room: str) -> None:
    """Imports point one way; nobody below knows that there is anything above."""
    for path in files_of(room):
        doors = doors_of(path)
        assert doors & ROOMS.keys() - {room} <= ROOMS[room], path
        assert doors & TOP <= ({"terminal"} if room == "demo" else set()), path


@pytest.mark.parametrize("name", sorted(GROUND))
def test_the_words_need_nothing_but_python(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    for module in imports_of(ast.parse(path.read_text()), path):
        first, _, rest = module.partition(".")
        if first == "tocsin":
            assert not rest or rest.split(".")[0] in GROUND, module
        else:
            assert first in sys.stdlib_module_names, module


def late_imports_of(path: Path) -> Iterator[str]:
    """What a file imports within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports_of(node, path)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_hides_in_a_function(path: Path) -> None:
    """Such an import would hide a circle; only an optional or dear library may come late."""
    late = set(late_imports_of(path))
    allowed = LATE.get(str(path.relative_to(PACKAGE)))
    if allowed is not None:
        late = {name for name in late if not name.startswith("tocsin" if not allowed else f"tocsin.{allowed}")}
    ours = {name for name in late if name.split(".")[0] == "tocsin"}
    theirs = {name.split(".")[0] for name in late} - {"tocsin"}

    assert ours == set()
    assert theirs <= OPTIONAL | sys.stdlib_module_names


DEAR = ("asyncio", "ssl", "subprocess", "tempfile", "uuid", "decimal", "hashlib", "pickle", "importlib.resources")


def test_a_program_waits_for_no_library_that_it_may_not_use(tmp_path: Path) -> None:
    """Each takes milliseconds at every start; what needs them, needs them later."""
    code = "import sys; before = set(sys.modules); import tocsin; tocsin.init(service='shop');"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} print(*set(sys.modules) - before)"],
        env={"PYTHONPATH": str(PACKAGE.parent), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    loaded = done.stdout.split()
    assert "tocsin.instrumentation.hooks" in loaded
    assert [name for name in DEAR if name in loaded] == []


HEAVY = (
    *("sqlalchemy", "alembic", "asyncpg", "telegram", "apscheduler", "starlette", "uvicorn", "opentelemetry.sdk"),
    "google.protobuf",
)


@pytest.mark.parametrize(
    "code",
    [
        "import tocsin",
        "import tocsin, os; os.environ['TOCSIN_DATABASE_URL'] = 'sqlite:///t.db'; tocsin.init(service='shop')",
        "import tocsin; tocsin.init(service='shop', endpoint='http://127.0.0.1:9');"
        "tocsin.track_error('a'); tocsin.shutdown()",
    ],
)
def test_a_service_that_only_captures_loads_little(code: str, tmp_path: Path) -> None:
    """No database library before the first error or where a server takes it, and never a bot or a web server."""
    look = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", look],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PACKAGE.parent), "HOME": str(tmp_path), "TOCSIN_SPOOL_DIR": str(tmp_path / "spool")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    loaded = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in HEAVY if name in loaded] == []
