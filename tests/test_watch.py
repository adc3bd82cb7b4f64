"""`tocsin run` around programs: nothing changes for them, and their death is told."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import termios
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.postgres import missing_part
from tests.processes import drain_rest, environment_of, rows_of, run_command
from tests.waiting import eventually
from tocsin import watch
from tocsin.exporter import life
from tocsin.exporter.life import State
from tocsin.watch import (
    ALIVE,
    DIED,
    ENDED,
    LATE,
    STATE_CELL,
    STOPPED,
    STOPPING_CELL,
    TOLD,
    UNTOLD,
    WATCHER_CELL,
    as_json,
    exit_as,
    judge,
    uuid7,
)

RUN = (sys.executable, "-m", "tocsin", "run", "--")


def ended(
    folder: Path, url: str, *command: str, **environ: str
) -> tuple[subprocess.CompletedProcess[str], Sequence[Any]]:
    """A program that has run to its end under `tocsin run`, and the rows that it left."""
    done = run_command(folder, [*RUN, *command], url, **environ)
    drain_rest(folder, url)
    return done, rows_of(url)


@contextmanager
def running(
    folder: Path,
    url: str,
    *command: str,
    run: Sequence[str] = RUN,
    environ: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program under `tocsin run` with pipes for all three streams, unless told otherwise."""
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [*run, *command], cwd=folder, env=environment_of(folder, url, **environ), **(streams | options)
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def start_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.mark.parametrize(
    ("code", "asked", "how", "exit_code"),
    [
        (0, (), ENDED, 0),
        (1, (), DIED, 1),
        (-signal.SIGKILL, (), DIED, -9),
        (-signal.SIGTERM, (), DIED, -15),  # nobody has asked us
        (-signal.SIGTERM, (signal.SIGTERM,), STOPPED, 0),
        (143, (signal.SIGTERM,), STOPPED, 0),  # as a shell says it
        (130, (signal.SIGINT,), STOPPED, 0),
        (-signal.SIGHUP, (signal.SIGHUP,), STOPPED, 0),
        (0, (signal.SIGTERM,), STOPPED, 0),
        (-signal.SIGQUIT, (signal.SIGQUIT,), STOPPED, -3),  # asked for, but no orderly stop
        (1, (signal.SIGTERM,), DIED, 1),  # it failed on its way out
        (-signal.SIGSEGV, (signal.SIGTERM,), DIED, -11),
        (-signal.SIGKILL, (signal.SIGTERM,), LATE, -9),
        (137, (signal.SIGTERM,), LATE, 137),
        (-signal.SIGKILL, (signal.SIGHUP,), DIED, -9),  # to many programs it means: read anew
        (-signal.SIGKILL, (signal.SIGUSR1,), DIED, -9),
    ],
)
def test_what_nobody_asked_for_is_a_death(code: int, asked: tuple[int, ...], how: str, exit_code: int) -> None:
    """And an orderly stop is exit code 0; all else ends as the program does."""
    is_stopping = not {signal.SIGTERM, signal.SIGINT}.isdisjoint(asked)

    assert judge(code, asked, is_stopping=is_stopping) == how
    assert exit_as(code, asked) == exit_code


def test_a_kill_for_want_of_memory_is_a_death_in_a_stop_too() -> None:
    assert judge(-signal.SIGKILL, (signal.SIGTERM,), is_stopping=True, oom_kills=1) == DIED


@pytest.mark.parametrize(
    ("script", "code", "message", "place"),
    [
        ("exit 3", 3, "exited with code 3", "exit code 3"),
        ("kill -KILL $$", -signal.SIGKILL, "was killed by SIGKILL", "SIGKILL"),
        ("kill -SEGV $$", -signal.SIGSEGV, "was killed by SIGSEGV", "SIGSEGV"),
    ],
)
def test_a_death_is_a_critical_error_and_ends_as_ever(
    script: str, code: int, message: str, place: str, tmp_path: Path, database_url: str
) -> None:
    """The same exit code or signal, no core of ours, and one row with all that is known."""
    (tmp_path / "start.sh").write_text(f"echo warming up\necho last words >&2\n{script}\n")

    done, rows = ended(tmp_path, database_url, "sh", "start.sh", TOCSIN_SERVICE="shop", TOCSIN_ENVIRONMENT="staging")

    assert done.returncode == code
    assert done.stdout == "warming up\n"
    assert "last words\n" in done.stderr
    assert list(tmp_path.glob("core*")) == []
    (row,) = rows
    assert row.message.startswith(f"sh start.sh {message}")
    assert (row.exception_type, row.severity, row.handled) == ("ProcessExit", "critical", False)
    assert (row.mechanism, row.service, row.environment) == ("process-exit", "shop", "staging")
    assert row.context["process.command"] == "sh start.sh"
    assert row.context["process.stderr"] == "last words"
    assert 0 < row.context["process.uptime_s"] < 30
    how = row.context.get("process.exit.signal") or f"exit code {row.context['process.exit.code']}"
    assert how == place


def test_a_program_that_ends_well_is_no_error(tmp_path: Path, sqlite_url: str) -> None:
    done, rows = ended(tmp_path, sqlite_url, "sh", "-c", "echo a complaint >&2")

    assert (done.returncode, rows) == (0, [])
    assert list((tmp_path / "spool").glob("*")) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, 0), (signal.SIGQUIT, -signal.SIGQUIT)],
    ids=["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"],
)
def test_a_signal_that_is_passed_on_ends_the_program_and_is_no_error(
    number: signal.Signals, code: int, tmp_path: Path, sqlite_url: str
) -> None:
    with running(tmp_path, sqlite_url, "sh", "-c", "echo up; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(20) == code

    drain_rest(tmp_path, sqlite_url)
    assert rows_of(sqlite_url) == []


def test_other_signals_come_through_too(tmp_path: Path, sqlite_url: str) -> None:
    script = "trap 'echo usr1' USR1; trap 'echo usr2' USR2; echo up; while :; do sleep 0.05; done"
    with running(tmp_path, sqlite_url, "sh", "-c", script) as process:
        assert process.stdout is not None
        for number, said in ((None, b"up\n"), (signal.SIGUSR1, b"usr1\n"), (signal.SIGUSR2, b"usr2\n")):
            if number is not None:
                process.send_signal(number)
            assert process.stdout.readline() == said
        process.terminate()
        assert process.wait(20) == 0


COUNTING = """
import os, signal
interrupts = os.open("interrupts", os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK)
signal.set_wakeup_fd(interrupts)  # a byte for each that arrives
signal.signal(signal.SIGINT, lambda *_: None)
print("up", flush=True)
while not os.path.exists("stop"):
    signal.sigtimedwait([], 0.05)
"""


def test_ctrl_c_at_a_terminal_reaches_the_program_once(tmp_path: Path, sqlite_url: str) -> None:
    """The terminal sends it to both; a second one would make many servers hurry."""
    (tmp_path / "count.py").write_text(COUNTING)
    interrupts = tmp_path / "interrupts"
    script = f"exec {sys.executable} -I -S count.py"
    ours, theirs = pty.openpty()
    terminal: dict[str, Any] = {"stdin": theirs, "start_new_session": True, "preexec_fn": _take_terminal}
    with running(tmp_path, sqlite_url, "sh", "-c", script, **terminal) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        os.write(ours, b"\x03")
        eventually(lambda: interrupts.stat().st_size >= 1)
        process.send_signal(signal.SIGINT)  # and one from somebody else is passed on
        eventually(lambda: interrupts.stat().st_size >= 2)
        (tmp_path / "stop").touch()
        assert process.wait(20) == 0
    os.close(ours)
    os.close(theirs)

    assert interrupts.read_bytes() == bytes([signal.SIGINT] * 2)


WITHOUT_TIMED_WAIT = (
    *(sys.executable, "-I", "-S", "-c"),
    "import runpy, signal, sys; del signal.sigtimedwait; runpy.run_path(sys.argv.pop(1), run_name='__main__')",
    watch.__file__,
)


def test_a_system_that_waits_for_signals_without_a_limit_passes_them_on_too(tmp_path: Path, sqlite_url: str) -> None:
    """As macOS."""
    (tmp_path / "count.py").write_text(COUNTING)
    interrupts = tmp_path / "interrupts"
    environ = {"TOCSIN_RUN_PATH": os.pathsep.join(sys.path), "TOCSIN_RUN_SPOOL": str(tmp_path / "spool")}
    program = ("sh", "-c", f"exec {sys.executable} -I -S count.py")
    ours, theirs = pty.openpty()
    terminal: dict[str, Any] = {"stdin": theirs, "start_new_session": True, "preexec_fn": _take_terminal}
    with running(tmp_path, sqlite_url, *program, run=WITHOUT_TIMED_WAIT, environ=environ, **terminal) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        os.write(ours, b"\x03")
        eventually(lambda: interrupts.stat().st_size >= 1)
        (tmp_path / "stop").touch()
        assert process.wait(20) == 0
    os.close(ours)
    os.close(theirs)
    with running(
        tmp_path, sqlite_url, "sh", "-c", "echo up; exec sleep 60", run=WITHOUT_TIMED_WAIT, environ=environ
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0

    assert interrupts.read_bytes() == bytes([signal.SIGINT])


def _take_terminal() -> None:
    os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first terminal that a session opens is its own


def test_streams_pass_byte_for_byte(tmp_path: Path, sqlite_url: str) -> None:
    """stdin and stdout are the program's own; stderr is copied, whatever is in it."""
    data = random.Random(7).randbytes(300_000)

    done = subprocess.run(
        [*RUN, "sh", "-c", "tee /dev/stderr"],
        cwd=tmp_path,
        env=environment_of(tmp_path, sqlite_url),
        input=data,
        capture_output=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == data
    assert done.stderr.partition(b"\n")[2] == data


def test_a_stderr_that_does_not_wait_loses_nothing(tmp_path: Path, sqlite_url: str) -> None:
    """Who shares the file may have made it so; a reader that is slow then is waited for."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with running(tmp_path, sqlite_url, "sh", "-c", "seq 50000 >&2", stderr=theirs) as process:
        os.close(theirs)
        eventually(lambda: _waiting_in(ours) > 50_000)  # it is full
        with open(ours, "rb") as reader:
            said = reader.read().partition(b"\n")[2]
        assert process.wait(20) == 0

    assert said.split() == [b"%d" % number for number in range(1, 50_001)]


def _waiting_in(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("program", ["sh -c 'echo up; exit 3'", "python -c 'print(\"up\"); raise SystemExit(3)'"])
def test_a_stderr_that_cannot_be_written_stops_no_program(
    program: str, stderr: str, tmp_path: Path, sqlite_url: str
) -> None:
    command = f"exec {sys.executable} -m tocsin run -- {program} {stderr}"

    done = run_command(tmp_path, ["sh", "-c", command], sqlite_url)

    assert (done.returncode, done.stdout) == (3, "up\n")


def test_stderr_comes_without_delay(tmp_path: Path, sqlite_url: str) -> None:
    """A question without an end of line is seen before it is answered."""
    with running(tmp_path, sqlite_url, "sh", "-c", "printf 'sure? ' >&2; read answer; exit 0") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        start_line(process)
        assert process.stderr.read(6) == b"sure? "
        process.stdin.write(b"yes\n")
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_program_outlives_who_reads_its_stderr(tmp_path: Path, sqlite_url: str) -> None:
    script = "read word; seq 50000 >&2; touch lived; exit 4"
    with running(tmp_path, sqlite_url, "sh", "-c", script) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        start_line(process)
        process.stderr.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.wait(20) == 4

    drain_rest(tmp_path, sqlite_url)
    assert (tmp_path / "lived").exists()
    assert [row.context["process.stderr"][-5:] for row in rows_of(sqlite_url)] == ["50000"]


def test_who_outlives_the_program_keeps_its_stderr(tmp_path: Path, sqlite_url: str) -> None:
    """A program that leaves something in the background ends at once, and what that says is still heard."""
    script = "(until [ -e go ]; do sleep 0.05; done; echo late >&2) > /dev/null & exit 0"
    with running(tmp_path, sqlite_url, "sh", "-c", script) as process:
        assert process.stderr is not None
        assert process.wait(20) == 0
        (tmp_path / "go").touch()
        assert process.stderr.read().endswith(b"\nlate\n")


def test_the_end_of_a_long_stderr_is_kept(tmp_path: Path, sqlite_url: str) -> None:
    _, rows = ended(tmp_path, sqlite_url, "sh", "-c", "seq 100000 >&2; exit 1")

    kept = rows[0].context["process.stderr"].splitlines()
    assert kept[1:] == [str(number) for number in range(int(kept[1]), 100_001)]
    assert len(kept) > 2000


def test_kill_9_of_the_watcher_ends_the_program(tmp_path: Path, sqlite_url: str) -> None:
    """Who kills the number that a process manager knows means the program: it does not go on unwatched."""
    with running(tmp_path, sqlite_url, "sh", "-c", "echo $$; exec sleep 60") as process:
        assert process.stdout is not None
        program = int(process.stdout.readline())
        assert program != process.pid
        process.kill()
        process.wait(20)
        eventually(lambda: not _is_alive(program))


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_program_finds_its_environment_and_names(tmp_path: Path, sqlite_url: str) -> None:
    """What OpenTelemetry's SDKs read is set too, and nothing of what we tell each other in between stays."""
    done, _ = ended(tmp_path, sqlite_url, "env", TOCSIN_SERVICE="shop")

    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert (found["TOCSIN_SERVICE"], found["OTEL_SERVICE_NAME"]) == ("shop", "shop")
    assert "startup" in found["PYTHONPATH"].split(os.pathsep)[0]
    assert [name for name in found if name.startswith("TOCSIN_RUN_")] == []


def test_a_name_for_opentelemetry_that_is_set_stays(tmp_path: Path, sqlite_url: str) -> None:
    done, _ = ended(tmp_path, sqlite_url, "env", TOCSIN_SERVICE="shop", OTEL_SERVICE_NAME="other")

    assert "OTEL_SERVICE_NAME=other\n" in done.stdout


def test_a_program_that_starts_python_is_told_of_once(tmp_path: Path, sqlite_url: str) -> None:
    """Python itself tells of its exception, also through a shell; the shell's exit code 1 says nothing more."""
    (tmp_path / "job.py").write_text("def main():\n    raise ValueError('the end')\n\nmain()\n")

    done, rows = ended(tmp_path, sqlite_url, "sh", "-c", f"{sys.executable} job.py; exit $?")

    assert done.returncode == 1
    assert [(row.exception_type, row.mechanism) for row in rows] == [("ValueError", "excepthook")]
    assert list((tmp_path / "spool").glob("*.told")) == []


def test_python_that_cannot_tell_any_more_is_told_of(tmp_path: Path, sqlite_url: str) -> None:
    done, rows = ended(tmp_path, sqlite_url, "sh", "-c", f"{sys.executable} -c 'import os; os._exit(9)'; exit $?")

    assert done.returncode == 9
    assert [row.context["process.exit.code"] for row in rows] == [9]


def test_what_cannot_be_stored_waits_for_the_server(tmp_path: Path, sqlite_url: str) -> None:
    """The database is away when the program dies: the death is on the disk, and the end is not held up."""
    (tmp_path / "missing").write_text("")
    away = sqlite_url.replace("tocsin.db", "missing/tocsin.db")

    done = run_command(tmp_path, [*RUN, "sh", "-c", "exit 6"], away)

    assert done.returncode == 6
    drain_rest(tmp_path, sqlite_url)
    assert [row.context["process.exit.code"] for row in rows_of(sqlite_url)] == [6]


def test_secrets_in_arguments_and_output_are_taken_out(tmp_path: Path, sqlite_url: str) -> None:
    secret = "pa55-w0rd-one"
    command = ("sh", "-c", f"echo password={secret} >&2; exit 1", "job", f"--token={secret}", "--api-key", secret)

    _, rows = ended(tmp_path, sqlite_url, *command)

    assert secret not in str(vars(rows[0]))
    assert "--token=" in rows[0].message


def test_a_spool_that_cannot_be_written_changes_no_end(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / f"tocsin-{os.getuid()}").write_text("")

    done = run_command(
        tmp_path, [*RUN, "sh", "-c", "exit 7"], sqlite_url, TOCSIN_SPOOL_DIR=str(tmp_path / "file" / "spool")
    )

    assert done.returncode == 7
    assert "cannot be used" in done.stderr


def test_a_watcher_takes_little_memory(tmp_path: Path, sqlite_url: str) -> None:
    with running(tmp_path, sqlite_url, "sh", "-c", "echo up; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            missing_part("the system's account of memory")
        process.terminate()

    (pss_kb,) = re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert int(pss_kb) < 15 * 1024


# Node, which prints what ends it.


NODE_DEATHS = {
    "throw": ("function fail() {\n  throw new TypeError('order ' + 42);\n}\nfail();\n", "TypeError", "order 42"),
    "reject": ("async function fail() {\n  throw new RangeError('late');\n}\nfail();\n", "RangeError", "late"),
    "code": (
        "const error = new Error('no answer');\nerror.code = 'ECONNREFUSED';\nsetTimeout(() => { throw error; }, 1);\n",
        "ECONNREFUSED",
        "no answer",
    ),
    "syntax": ("const x = (\n", "SyntaxError", "Unexpected end of input"),
    "port": (
        "require('net').createServer().listen(1, '192.0.2.1');\n",
        "EADDRNOTAVAIL",
        "listen EADDRNOTAVAIL: address not available 192.0.2.1:1",
    ),
}


@pytest.mark.parametrize(
    "name", [name if name in ("throw", "code") else pytest.param(name, marks=pytest.mark.gate) for name in NODE_DEATHS]
)
def test_node_says_what_ended_it(name: str, tmp_path: Path, sqlite_url: str) -> None:
    """The row has type, message and stack of the exception, and its exit code besides."""
    if shutil.which("node") is None:
        missing_part("node")
    code, kind, message = NODE_DEATHS[name]
    (tmp_path / "app.js").write_text(code)

    done, (row,) = ended(tmp_path, sqlite_url, "node", "app.js")

    assert done.returncode == 1
    assert (row.exception_type, row.message) == (kind, message)
    assert (row.severity, row.mechanism, row.service) == ("critical", "process-exit", "app")
    assert row.stack.splitlines()[1].startswith("    at ")
    assert row.context["process.exit.code"] == 1
    assert row.context["process.command"] == "node app.js"


# Signals: once each, whoever sends them.


HEARING = """
import os, signal
heard = os.open("heard", os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK)
signal.set_wakeup_fd(heard)  # a byte for each that arrives
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
print(os.getpid(), flush=True)
while not os.path.exists("stop"):
    signal.sigtimedwait([], 0.05)
"""


class Tree:
    """A program that counts signals under `tocsin run`, and all that belongs to it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        self.program = int(process.stdout.readline())
        self.sentinel = eventually(self._sentinel)
        self._folder = folder

    def _sentinel(self) -> int:
        """The child of the watcher that is not the program; it is there a moment after it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return max({int(pid) for pid in children} - {self.program}, default=0)

    def heard(self) -> bytes:
        """The signals that reached the program."""
        return (self._folder / "heard").read_bytes()

    def end(self) -> int:
        """Let it end by itself; our exit code, when all that was on its way has arrived."""
        self.process.send_signal(signal.SIGUSR2)  # passed on after what came before it, and ends the program
        return self.process.wait(20)


@contextmanager
def tree(folder: Path, url: str) -> Iterator[Tree]:
    (folder / "hear.py").write_text(HEARING)
    command = (sys.executable, "-I", "-S", "hear.py")
    with running(folder, url, *command, start_new_session=True) as process:
        yield Tree(folder, process)


def one_by_one(number: int, pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, number)


SENDERS = {
    "the watcher alone": lambda one, number: one_by_one(number, [one.process.pid]),
    "the group": lambda one, number: os.killpg(one.process.pid, number),
    "parents first": lambda one, number: one_by_one(number, [one.process.pid, one.program, one.sentinel]),
    "children first": lambda one, number: one_by_one(number, [one.sentinel, one.program, one.process.pid]),
}


@pytest.mark.parametrize("sender", SENDERS)
def test_a_signal_reaches_the_program_once(sender: str, tmp_path: Path, sqlite_url: str) -> None:
    """Docker and `kill` signal the watcher, systemd and PM2 the whole tree: to some a second SIGINT says "at once"."""
    sent = [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    with tree(tmp_path, sqlite_url) as one:
        for count, number in enumerate(sent, 1):
            SENDERS[sender](one, number)
            eventually(lambda: len(one.heard()) >= count)
        one.end()

        assert one.heard() == bytes(sent)


def test_a_signal_to_the_sentinel_alone_does_nothing(tmp_path: Path, sqlite_url: str) -> None:
    """And a signal to the watcher that comes later is no echo of it; without the sentinel they come through too."""
    with tree(tmp_path, sqlite_url) as one:
        sentinel = one.sentinel
        os.kill(sentinel, signal.SIGTERM)
        one.process.send_signal(signal.SIGINT)
        eventually(lambda: one.heard() == bytes([signal.SIGINT]))
        os.kill(sentinel, signal.SIGKILL)
        eventually(lambda: not _is_alive(sentinel))
        one.process.send_signal(signal.SIGTERM)
        eventually(lambda: one.heard() == bytes([signal.SIGINT, signal.SIGTERM]))
        assert one.process.poll() is None


def test_a_program_in_a_group_of_its_own_hears_what_goes_to_ours(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "apart.py").write_text("import os; os.setsid()\n" + HEARING)
    command = (sys.executable, "-I", "-S", "apart.py")
    with running(tmp_path, sqlite_url, *command, start_new_session=True) as process:
        one = Tree(tmp_path, process)
        os.killpg(process.pid, signal.SIGINT)
        eventually(lambda: one.heard() == bytes([signal.SIGINT]))


def test_a_program_that_dies_before_the_signal_reaches_us_was_asked_to(tmp_path: Path, sqlite_url: str) -> None:
    """As where a process manager goes through the tree, children first."""
    with running(tmp_path, sqlite_url, "sh", "-c", "echo $$; exec sleep 60") as process:
        assert process.stdout is not None
        one_by_one(signal.SIGINT, [int(process.stdout.readline()), process.pid])
        assert process.wait(20) == 0

    drain_rest(tmp_path, sqlite_url)
    assert rows_of(sqlite_url) == []


def test_all_of_it_ends_with_the_watcher(tmp_path: Path, sqlite_url: str) -> None:
    with tree(tmp_path, sqlite_url) as one:
        sentinel = one.sentinel
        one.process.kill()
        eventually(lambda: not _is_alive(one.program) and not _is_alive(sentinel))


STUBBORN = "trap '' TERM; echo $$; while :; do sleep 0.05; done"


def test_a_kill_after_a_stop_was_asked_for_is_a_note(tmp_path: Path, sqlite_url: str) -> None:
    """It had too little time: no death, nobody is woken."""
    with running(tmp_path, sqlite_url, "sh", "-c", STUBBORN) as process:
        assert process.stdout is not None
        program = int(process.stdout.readline())
        process.terminate()
        eventually(lambda: signal.SIGTERM in _ignored_by(program))
        eventually(lambda: _has_asked(tmp_path))
        os.kill(program, signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL

    drain_rest(tmp_path, sqlite_url)
    (row,) = rows_of(sqlite_url)
    assert (row.severity, row.exception_type) == ("medium", "ProcessExit")
    assert re.search(r": stop ran out of time after \d+ s$", row.message)


def _ignored_by(pid: int) -> set[int]:
    """The signals that a process ignores: at least what it has inherited, as from a shell that put it behind."""
    (mask,) = re.findall(r"^SigIgn:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return {number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1}


def _has_asked(folder: Path) -> bool:
    """Whether the watcher has noted that a stop was asked for."""
    heads = [live.read_bytes() for live in (folder / "spool").glob("*.live")]
    return any(head[8 * STOPPING_CELL : 8 * STOPPING_CELL + 8].strip(b"\0") for head in heads)


def _is_marked(folder: Path) -> bool:
    """Whether the watcher has noted that the program lives."""
    return any(live.stat().st_size for live in (folder / "spool").glob("*.live"))


def test_what_is_killed_with_its_watcher_is_told_by_who_comes_next(tmp_path: Path, sqlite_url: str) -> None:
    """Nobody saw it, so that it is only likely; after a stop that was asked for it is a note here too."""
    for is_asked in (False, True):
        with running(tmp_path, sqlite_url, "sh", "-c", STUBBORN, start_new_session=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            eventually(lambda: _is_marked(tmp_path))
            if is_asked:
                process.terminate()
                eventually(lambda: _has_asked(tmp_path))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        drain_rest(tmp_path, sqlite_url)

    told = [(row.severity, row.message) for row in rows_of(sqlite_url)]
    assert [severity for severity, _ in told] == ["critical", "medium"]
    assert "likely killed" in told[0][1]
    assert "stop ran out of time" in told[1][1]


# What is recorded, whatever becomes of who makes it full.


def test_the_bare_fact_is_kept_where_nobody_can_make_it_full(tmp_path: Path, sqlite_url: str) -> None:
    """The helper cannot start: what the watcher has written is complete, and is stored by who comes next."""
    environ = {
        "TOCSIN_RUN_PATH": str(tmp_path / "nowhere"),
        "TOCSIN_RUN_SPOOL": str(tmp_path / "spool"),
        "TOCSIN_RUN_RESOURCE": '{"service.name":"shop","deployment.environment.name":"production"}',
        "TOCSIN_RUN_SERVICE": "shop",
    }
    watcher = (sys.executable, "-I", "-S", watch.__file__)
    with running(tmp_path, sqlite_url, "sh", "-c", "exit 3", run=watcher, environ=environ) as process:
        assert process.wait(20) == 3

    drain_rest(tmp_path, sqlite_url)
    (row,) = rows_of(sqlite_url)
    assert re.fullmatch(r"shop exited with code 3 after \d s", row.message)
    assert (row.severity, row.exception_type, row.service) == ("critical", "ProcessExit", "shop")
    assert row.context["process.exit.code"] == 3
    assert list((tmp_path / "spool").glob("*.seg")) == []


def test_the_cells_are_where_the_house_has_them() -> None:
    """The watcher loads nothing of the house."""
    assert (STOPPING_CELL, STATE_CELL, WATCHER_CELL) == (life.STOPPING, life.STATE, life.WATCHER)
    assert (ALIVE, TOLD) == (State.ALIVE, State.TOLD)
    assert {State.ALIVE, State.LEFT} == set(UNTOLD)


@pytest.mark.parametrize("value", [None, True, -7, 1.5, 'a"\\\n\x00é\u2028😀', ["a", {"b": [], "c": {}}]])
def test_values_are_written_as_json(value: Any) -> None:
    assert json.loads(as_json(value)) == value
    assert as_json(value).isascii()


def test_an_id_is_a_uuid_of_its_time() -> None:
    value = uuid.UUID(uuid7(1_773_480_413_589_793_000))

    assert value.version == 7
    assert value.int >> 80 == 1_773_480_413_589
    assert uuid7(1, 5) == uuid7(1, 5)


def test_the_row_of_the_process_says_how_it_ended(tmp_path: Path, sqlite_url: str) -> None:
    """Python's is the one that it has made by itself."""
    for program in (["sh", "-c", "exit 3"], [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]):
        ended(tmp_path, sqlite_url, *program)

    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as database:
        found = database.execute("SELECT ended_how, ended_at IS NOT NULL FROM instances ORDER BY started_at").fetchall()
    assert found == [("exited: 3", 1), ("killed: SIGKILL", 1)]


# Python.


def test_python_is_told_of_with_what_it_left(tmp_path: Path, sqlite_url: str) -> None:
    """Its last stacks, too, and once: by its watcher, and by nobody who finds its files."""
    (tmp_path / "job.py").write_text("import ctypes\ndef fail():\n    ctypes.string_at(0)\n\nfail()\n")

    done, (row,) = ended(tmp_path, sqlite_url, sys.executable, "job.py")

    assert done.returncode == -signal.SIGSEGV
    assert row.message.endswith("job.py was killed by SIGSEGV")
    assert (row.severity, row.mechanism) == ("critical", "process-exit")
    assert [frame["function"] for frame in row.context["tocsin.frames"]][-3:-1] == ["<module>", "fail"]
    assert "Current thread" in row.stack


def test_a_text_that_python_exits_with_is_kept(tmp_path: Path, sqlite_url: str) -> None:
    done, (row,) = ended(tmp_path, sqlite_url, sys.executable, "-c", "import sys; sys.exit('no stock')")

    assert done.returncode == 1
    assert row.context["process.stderr"] == "no stock"


AT_A_TERMINAL = "import sys; print(sys.stderr.isatty(), flush=True); {}"


@contextmanager
def at_a_terminal(folder: Path, url: str, code: str, *options: str, **environ: str) -> Iterator[tuple[Any, int]]:
    """A Python program with stdin and stderr at a terminal; and our end of it."""
    ours, theirs = pty.openpty()
    terminal: dict[str, Any] = {"stdin": theirs, "stderr": theirs, "start_new_session": True}
    run = (*RUN[:-1], *options, "--")
    command = (sys.executable, "-c", code)
    with running(folder, url, *command, run=run, environ=environ, preexec_fn=_take_terminal, **terminal) as process:
        os.close(theirs)
        yield process, ours
    os.close(ours)


def test_python_keeps_its_terminal(tmp_path: Path, sqlite_url: str) -> None:
    """For colours, and for a bar that grows."""
    with at_a_terminal(tmp_path, sqlite_url, AT_A_TERMINAL.format("")) as (process, _):
        assert process.communicate(timeout=20)[0] == b"True\n"


# Starting again.


def read_all(terminal: int) -> str:
    """What was said at a terminal, until who says it is gone."""
    said = b""
    with suppress(OSError):  # nobody is at its other end
        while data := os.read(terminal, 4096):
            said += data
    return said.decode()


DIES_TWICE = AT_A_TERMINAL.format(
    "import os; n = len(os.listdir('runs')); os.mkdir(f'runs/{n}'); n < 2 and os.kill(os.getpid(), 9)"
)


@pytest.mark.gate  # the short form is a row of `tests/reliability/ways.py`
def test_a_program_that_dies_at_a_terminal_is_started_again_more_and_more_slowly(
    tmp_path: Path, sqlite_url: str
) -> None:
    """Until it ends by itself; each time is said, and each death is one error."""
    (tmp_path / "runs").mkdir()
    with at_a_terminal(tmp_path, sqlite_url, DIES_TWICE, TOCSIN_SERVICE="shop") as (process, terminal):
        said = read_all(terminal)
        assert process.wait(20) == 0

    drain_rest(tmp_path, sqlite_url)
    assert re.findall(r"tocsin: (shop was killed by SIGKILL) after \d+ s; starting it again in (\d+) s", said) == [
        ("shop was killed by SIGKILL", "1"),
        ("shop was killed by SIGKILL", "2"),
    ]
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert [row.exception_type for row in rows_of(sqlite_url)] == ["ProcessExit"] * 2
    assert len({row.instance_id for row in rows_of(sqlite_url)}) == 2


@pytest.mark.parametrize(
    ("options", "environ"),
    [(("--no-restart",), {}), ((), {"pm_id": "0"}), ((), {"INVOCATION_ID": "0123", "SYSTEMD_EXEC_PID": ""})],
    ids=["asked", "PM2", "systemd"],
)
def test_where_somebody_else_starts_it_again_we_do_not(
    options: tuple[str, ...], environ: dict[str, str], tmp_path: Path, sqlite_url: str
) -> None:
    environ = {name: value for name, value in environ.items() if value}
    with at_a_terminal(tmp_path, sqlite_url, "raise SystemExit(3)", *options, **environ) as (process, _):
        assert process.wait(20) == 3


def test_a_stop_in_the_pause_is_the_end(tmp_path: Path, sqlite_url: str) -> None:
    run = (*RUN[:-1], "--restart", "--")
    with running(tmp_path, sqlite_url, "sh", "-c", "exit 3", run=run) as process:
        assert process.stderr is not None
        while b"starting it again in 2 s" not in process.stderr.readline():
            assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0


def test_a_program_that_fails_in_its_stop_stays_stopped(tmp_path: Path, sqlite_url: str) -> None:
    run = (*RUN[:-1], "--restart", "--")
    script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"
    with running(tmp_path, sqlite_url, "sh", "-c", script, run=run) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(20) == 7


GROWING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), sys.exit(0)))
is_first = not os.path.exists("grown")
open("grown", "w").close()
child = os.fork() if is_first else 0
if is_first and child == 0:  # it is what it has started that grows
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    taken, parent = bytearray(os.urandom(1)) * (64 << 20), os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)
    os._exit(0)
print("up", flush=True)
while is_first:
    time.sleep(0.05)
"""


@pytest.mark.gate  # the short form is a row of `tests/reliability/ways.py`
def test_a_program_that_takes_too_much_memory_is_stopped_and_started_again(tmp_path: Path, sqlite_url: str) -> None:
    """Its processes count; where somebody else restarts what dies, too; and it is no death."""
    (tmp_path / "grow.py").write_text(GROWING)
    run = (*RUN[:-1], "--no-restart", "--max-memory", "48M", "--")
    with running(tmp_path, sqlite_url, sys.executable, "-I", "-S", "grow.py", run=run) as process:
        out, said = process.communicate(timeout=40)

    drain_rest(tmp_path, sqlite_url)
    assert (process.returncode, out) == (0, b"up\nbye\nup\n")
    assert re.search(rb"of memory, of 48 MB: it is stopped", said)
    (row,) = rows_of(sqlite_url)
    assert (row.exception_type, row.severity) == ("MemoryLimit", "medium")
    assert row.context["process.memory_bytes"] > row.context["process.memory_limit_bytes"] == 48 * 2**20


@pytest.mark.gate
def test_a_loop_of_deaths_is_one_more_error(tmp_path: Path, sqlite_url: str) -> None:
    """Also where each is watched anew, as under PM2."""
    for _ in range(6):
        run_command(tmp_path, [*RUN, "sh", "-c", "exit 5"], sqlite_url, TOCSIN_SERVICE="shop")
    drain_rest(tmp_path, sqlite_url)

    rows = rows_of(sqlite_url)
    assert Counter(row.exception_type for row in rows) == {"ProcessExit": 6, "CrashLoop": 1}
    assert len({row.group_id for row in rows if row.exception_type == "ProcessExit"}) == 1


def test_an_end_that_is_settled_stays_so_while_somebody_looks_at_it(tmp_path: Path) -> None:
    """A neighbour locks what is left for a moment, sees whose it is, and leaves it to us."""
    left = tmp_path / f"{1:020d}-7-0000000a.live"
    left.write_bytes(bytes(4096))
    looks = "import fcntl, sys, time; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX); print(); time.sleep(0.1)"
    with subprocess.Popen([sys.executable, "-c", looks, left], stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()

        watch.Left(str(left), 0).mark_told()

    assert left.read_bytes()[8 * life.STATE] == State.TOLD


# The first process of a container.


def test_the_first_process_buries_orphans_and_ends_as_the_program(tmp_path: Path, sqlite_url: str) -> None:
    script = "(sleep 0.1 & echo $! > orphan); while [ -e /proc/$(cat orphan) ]; do sleep 0.05; done; exit 7"
    first = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    try:
        subprocess.run([*first, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        missing_part("unshare, and the right to use it")

    done = run_command(tmp_path, [*first, *RUN, "sh", "-c", script], sqlite_url)

    assert done.returncode == 7, done.stderr
    drain_rest(tmp_path, sqlite_url)
    assert [row.context["process.exit.code"] for row in rows_of(sqlite_url)] == [7]


def test_the_first_process_stops_when_it_is_asked(tmp_path: Path, sqlite_url: str) -> None:
    first = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM")
    try:
        subprocess.run([*first, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        missing_part("unshare, and the right to use it")

    with running(tmp_path, sqlite_url, "sh", "-c", "echo up; exec sleep 60", run=(*first, *RUN)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_socket_that_systemd_hands_over_is_the_program_s(tmp_path: Path, sqlite_url: str) -> None:
    """Who gets one looks whether ``LISTEN_PID`` is its own number."""
    start = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
    look = 'test "$LISTEN_PID" = "$$"'

    done = run_command(tmp_path, [sys.executable, "-c", start, *RUN, "sh", "-c", look], sqlite_url)

    assert done.returncode == 0, done.stderr
