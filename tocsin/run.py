"""`tocsin run -- CMD…`: a user's program, instrumented where it is Python, and watched."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tocsin import install, semconv, watch
from tocsin.settings import Settings, git_release, service_name, substitute_spool_dir
from tocsin.text import one_line

STARTUP_FOLDER = Path(__file__).parent / "instrumentation" / "startup"


def run(
    command: Sequence[str],
    settings: Settings,
    problems: Sequence[str],
    *,
    traces: bool = False,
    restart: bool | None = None,
    max_memory: int = 0,
) -> int:
    """
    Become the parent of the program that `command` names; returns only where it cannot be started.

    A Python program is told by its path to start tocsin first. Whatever it is, a small parent sees how it ends
    (`tocsin.watch`).

    Args:
        problems: what is wrong with the settings; said here, in one line each, and the program starts.
        traces: add the OpenTelemetry ASGI instrumentation.
        restart: start it again when it dies (None: where nobody else does, see `is_ours_to_restart`).
        max_memory: the most resident memory in bytes, beyond which it is started anew; 0 for no limit.

    Returns:
        127 when there is no such program, 126 when it cannot be run.
    """
    for problem in problems:
        _say(problem)
    service = settings.service or service_name(command)
    python = _python_of(command[0])
    is_instrumented = python is None or has_tocsin(python)
    environ = dict(os.environ)
    if is_instrumented:
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP_FOLDER), environ.get("PYTHONPATH")]))
    environ["TOCSIN_SERVICE"] = service
    environ["TOCSIN_RUN"] = "1"
    release = settings.release or git_release()
    if release:
        environ["TOCSIN_RELEASE"] = release
    if traces:
        environ["TOCSIN_TRACES"] = "1"
    if python is None or not is_instrumented:
        environ.setdefault("OTEL_SERVICE_NAME", service)  # the same name by way of another SDK
    if restart is None:
        restart = is_ours_to_restart(environ)
    plan = _plan(settings.with_names(service, release), is_instrumented=python is not None and is_instrumented)
    plan |= {"RESTART": "1" if restart else "", "MAX_MEMORY": str(max_memory)}
    try:
        plan |= _start(command, plan, environ)
    except FileNotFoundError:
        _say(f"there is no program {command[0]!r}")
        return 127
    except OSError as problem:
        _say(f"{command[0]!r} cannot be run: {problem.strerror}")
        return 126
    # What takes a while comes when the program has started; what that writes to stderr waits until it is said.
    from tocsin.destination import told  # noqa: PLC0415

    where = one_line(told(settings), 400)
    _say(f"watching {one_line(service, 60)} ({settings.environment}); errors go to {where}")
    if not is_instrumented:
        get_it = f"{python} -m pip install {install.source()}"
        _say(f"only the program's end is watched, since its Python has no tocsin: {get_it}")
    return _become_watcher(command, plan, environ)


def is_ours_to_restart(environ: Mapping[str, str]) -> bool:
    """Whether nobody else starts a program again that dies: at a terminal, and not under PM2 or systemd."""
    if os.getpid() == 1 or "pm_id" in environ:
        return False
    # A terminal that systemd has started hands its name on to what runs in it.
    of_systemd = environ.get("SYSTEMD_EXEC_PID", str(os.getpid())) == str(os.getpid()) and "INVOCATION_ID" in environ
    return not of_systemd and _is_terminal(0) and _is_terminal(2)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _plan(settings: Settings, *, is_instrumented: bool) -> dict[str, str]:
    """What the parent need know; it reads no settings by itself. See `tocsin.watch.Plan`."""
    resource = {
        semconv.SERVICE_NAME: settings.service,
        semconv.DEPLOYMENT_ENVIRONMENT: settings.environment,
        **({semconv.SERVICE_VERSION: settings.release} if settings.release else {}),
    }
    return {
        "PATH": os.pathsep.join(sys.path),
        "SPOOL": os.path.abspath(settings.spool_dir),  # noqa: PTH100
        "SPOOL_BYTES": str(settings.spool_max_bytes or 0),
        "RESOURCE": json.dumps(resource),
        "SERVICE": settings.service,
        "TELLS": "1" if is_instrumented else "",
        "STOP_S": str(settings.shutdown_timeout_s),
    }


def _start(command: Sequence[str], plan: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """
    Start the program; what the parent need know of it.

    Raises:
        OSError: it cannot be run.
    """
    its = watch.Plan(plan)
    its.folders = watch.first_usable(its)
    if not its.folders:  # what stands in for it takes a while to find out
        its.folders = [substitute_spool_dir()]
        its.folders = watch.first_usable(its)
    run, signals = watch.Run(its), watch.Signals.held()
    watch.start(run, command, its, signals, environ)
    return {"SPOOL": "\n".join(its.folders), "RUNNING": run.handed_over(), "SIGNALS": signals.handed_over()}


def _become_watcher(command: Sequence[str], plan: Mapping[str, str], environ: Mapping[str, str]) -> NoReturn:
    if sys.executable:
        # An interpreter of its own: what this one has loaded would stay in memory for as long as the program runs.
        told = {f"TOCSIN_RUN_{name}": value for name, value in plan.items()}
        with suppress(OSError):
            os.execve(sys.executable, [sys.executable, "-I", "-S", _watcher(), *command], {**environ, **told})  # noqa: S606
    os.environ.update(environ)
    watch.watch(command, watch.Plan(plan))


def _watcher() -> str:
    """As a script it would be compiled at each start, which takes as long as all the rest of it."""
    compiled: str | None = vars(watch).get("__cached__")
    return compiled if compiled and _is_made_of(compiled, watch.__file__) else watch.__file__


def _is_made_of(compiled: str, source: str) -> bool:
    """
    Whether bytecode is that of a file as it is now; as a script it would run all the same.

    An older one stays where Python may not write: a folder of root's, or ``PYTHONDONTWRITEBYTECODE``.

    Source: PEP 552, the head of a file with bytecode.
    """
    try:
        with Path(compiled).open("rb") as file:
            head = file.read(16)
        now = Path(source).stat()
    except OSError:
        return False
    parts = (0, int(now.st_mtime) & 0xFFFFFFFF, now.st_size & 0xFFFFFFFF)
    return head == importlib.util.MAGIC_NUMBER + struct.pack("<III", *parts)


def _python_of(program: str) -> Path | None:
    found = _found(program)
    return interpreter_of(found.absolute()) if found else None


def _found(program: str) -> Path | None:
    """As the system finds it; `shutil`, which does too, loads a dozen other modules."""
    for folder in [""] if "/" in program else os.get_exec_path():
        place = Path(folder, program)
        if os.access(place, os.X_OK) and place.is_file():
            return place
    return None


def interpreter_of(program: Path) -> Path | None:
    """The Python that runs a program: the program itself, or the one that its first line names; None for others."""
    if _is_python(program.name) or _is_python(program.resolve().name):
        return program
    try:
        with program.open("rb") as file:
            head = file.read(1024).decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    if not head or not head[0].startswith("#!"):
        return None
    words = head[0][2:].split()
    if len(head) > 1 and head[1].startswith("'''exec' "):
        # An installer writes a shell's line where the way to the interpreter is long or has spaces.
        words = re.findall(r'"([^"]+)"|(\S+)', head[1].removeprefix("'''exec' "))[0]
    named = next((word for word in words if _is_python(word.rpartition("/")[2])), None)
    return _found(named) or Path(named) if named else None


def _is_python(name: str) -> bool:
    return name.startswith(("python", "pypy"))


def has_tocsin(python: Path) -> bool:
    """
    Whether a Python finds tocsin: ours does, another where it is installed beside it.

    Looked up in its folders: asking it would take as long as it takes to start.
    """
    prefix = python.parent.parent
    if prefix == Path(sys.prefix):
        return True
    places = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    for base in (prefix, Path(os.environ.get("HOME", "/")) / ".local"):
        places += base.glob("lib/python3*/*-packages")
    return any(True for place in places for _ in place.glob("tocsin*"))


def _say(text: str) -> None:
    with suppress(Exception):  # stderr may be closed, or its disk full: the program starts all the same
        sys.stderr.write(f"tocsin: {text}\n")
        sys.stderr.flush()
