"""
The ways in which a program dies or fails, each a row of the table in ``docs/crashes.md``.

A row says what is recorded, what the program does next, and who starts it again. It belongs to a program of
a few lines that is run as a real process; `tests/reliability/test_ways_to_die.py` holds every row to what it
says, and that nothing else is recorded.
"""

from __future__ import annotations

import http.client
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import psutil

from tests.waiting import eventually

_WAITS_S: Final = 40


@dataclass(frozen=True, slots=True)
class Also:
    """Evidence beside the message: in words, where it stands (``stack`` or a key of the context), what it says."""

    words: str
    where: str
    says: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An error in the table ``error_logs``; `says` is a part of its message, `count` how often it is there."""

    severity: str
    type: str
    says: str = ""
    mechanism: str
    count: int = 1
    also: tuple[Also, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to die or fail; `then` and `who` follow from the program's exit code where they are not said."""

    way: str
    told: tuple[Told, ...] = ()
    then: str = ""
    who: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """
    A program, how it is started, and the ways to die or fail that are tried with it.

    Args:
        name: of its service, by which its errors are told apart.
        code: what stands in ``program.py``.
        exit: exit code of the command, or the negative number of the signal that ended it.
        play: what a person or a supervisor does meanwhile.
        loops: it is run on uvloop as well.
        at_terminal: it has a terminal, which `Running.type` types at.
        needs: a part that a machine may lack.
        is_heavy: it imports much, and so is shared out first.
    """

    name: str
    rows: tuple[Row, ...]
    code: str = ""
    command: str = "tocsin run -- python program.py"
    exit: int = 0
    play: Callable[[Running], None] | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    loops: bool = False
    at_terminal: bool = False
    needs: str = ""
    is_heavy: bool = False
    is_gate: bool = False

    def then(self, row: Row) -> str:
        """What it does next."""
        return row.then or ends(self.exit)

    def who(self, row: Row) -> str:
        """Who starts it again."""
        if row.who:
            return row.who
        if self.goes_on(row):
            return NOBODY
        if self.exit == 0:
            return IN_ORDER
        return SUPERVISED_ALONE if self.command == ALONE else SUPERVISED

    def goes_on(self, row: Row) -> bool:
        """Whether a way ends it at all."""
        return self.then(row).endswith(GOES_ON)


class Running:
    """A program that runs, and what can be done to it."""

    def __init__(self, program: Program, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = environ
        folder.mkdir()
        (folder / "program.py").write_text(program.code)
        self._output = folder / "output.txt"
        self._terminal: int | None = None
        stdin: int = subprocess.DEVNULL
        if program.at_terminal:
            self._terminal, stdin = os.openpty()
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*(_AT_TERMINAL if program.at_terminal else ()), *_words(program.command, environ)],
                cwd=folder,
                env=dict(environ),
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if program.at_terminal:
            os.close(stdin)

    def said(self) -> str:
        """What it wrote so far."""
        return self._output.read_text("utf-8", "replace")

    def wait_for(self, pattern: str, times: int = 1, timeout_s: float = _WAITS_S) -> str:
        """Wait until it has said something so often; the last time, or what stands in the parentheses."""

        def found() -> str | None:
            is_over = self.process.poll() is not None
            seen = list(re.finditer(pattern, self.said(), re.MULTILINE))
            if len(seen) >= times:
                return seen[-1][seen[-1].re.groups] or "?"
            assert not is_over, "it has ended"
            return None

        try:
            return eventually(found, timeout_s) or ""
        except AssertionError:
            raise AssertionError(f"it did not say {pattern!r} {times} times, but:\n{self.said()}") from None

    def pid(self, times: int = 1) -> int:
        """The process id that the program has printed; of its life number `times`."""
        return int(self.wait_for(r"^pid (\d+)$", times))

    def send(self, number: signal.Signals) -> None:
        """A signal for the process that was started, as a supervisor sends it."""
        self.process.send_signal(number)

    def type(self, key: bytes) -> None:
        """A key at its terminal."""
        assert self._terminal is not None
        os.write(self._terminal, key)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a request; asked again for as long as nobody listens."""
        address = self.wait_for(r"(?:running on|Listening at:) (http://127\.0\.0\.1:\d+)")
        place = urllib.parse.urlsplit(address).netloc

        def ask() -> tuple[int, bytes] | None:
            connection = http.client.HTTPConnection(place, timeout=_WAITS_S)
            try:
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return None
                connection.request("GET", path)
                answer = connection.getresponse()
                try:
                    return answer.status, answer.read()
                except http.client.IncompleteRead as part:
                    return answer.status, part.partial
            finally:
                connection.close()

        status, body = eventually(ask, _WAITS_S) or (0, b"")
        return status, body

    def end(self, *, at_once: bool) -> int:
        """Wait for its end, or bring it about; its exit code, or the negative number of its signal."""
        try:
            return self.process.wait(0 if at_once else _WAITS_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            if self._terminal is not None:
                os.close(self._terminal)


_AT_TERMINAL: Final = (
    *(sys.executable, "-c"),
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])",
)


def _words(command: str, environ: Mapping[str, str]) -> list[str]:
    """A command as a shell reads it, with the variables that a test sets; `$$` is for a shell within."""
    return [environ.get(word[1:], word) if word.startswith("$") else word for word in shlex.split(command)]


# What the program does next, and who starts it again.

GOES_ON: Final = "goes on"
ANSWERS_500: Final = "answers 500, goes on"

SUPERVISED: Final = "your supervisor, or `--restart`"
SUPERVISED_ALONE: Final = "your supervisor"
NOBODY: Final = "nobody: it goes on"
IN_ORDER: Final = "nobody: it ended in order"
BY_US: Final = "`tocsin run`"
ASKED: Final = "nobody: it was asked to end"


def ends(code: int) -> str:
    """In words; 0, another exit code, or the negative number of a signal."""
    return f"ends, exit code {code}" if code >= 0 else f"ends by {signal.Signals(-code).name}"


ALONE: Final = "python program.py"
"""Without `tocsin run`: the program says `tocsin.init()` itself."""

# What is recorded.

_STACKS = Also("the stacks of its threads", "stack", "program.py")


def _high(
    kind: str, says: str, mechanism: str, *also: Also, severity: str = "high", count: int = 1
) -> tuple[Told, ...]:
    return (Told(severity=severity, type=kind, says=says, mechanism=mechanism, also=also, count=count),)


def _uncaught(kind: str, says: str, *also: Also) -> tuple[Told, ...]:
    return _high(kind, says, "excepthook", *also, severity="critical")


def _death(says: str, *also: Also, kind: str = "ProcessExit", count: int = 1) -> tuple[Told, ...]:
    return _high(kind, says, "process-exit", *also, severity="critical", count=count)


def _note(says: str, kind: str = "ProcessExit") -> tuple[Told, ...]:
    return _high(kind, says, "process-exit", severity="medium")


_STDERR = Also("the end of stderr", "process.stderr")


# What is done to it.


def _says(text: str, times: int = 1) -> Callable[[Running], None]:
    def play(running: Running) -> None:
        running.wait_for(f"^{text}$", times)

    return play


def _kill_program(number: signal.Signals) -> Callable[[Running], None]:
    def play(running: Running) -> None:
        os.kill(running.pid(), number)

    return play


def _send(number: signal.Signals, *, is_up: bool = False) -> Callable[[Running], None]:
    """A signal for what was started; the program has said its number before, or it is known to be up."""

    def play(running: Running) -> None:
        if not is_up:
            running.pid()
        running.send(number)

    return play


def _kill_parent(running: Running) -> None:
    """The program ends with it."""
    program = running.pid()
    running.send(signal.SIGKILL)
    eventually(lambda: not _lives(program), _WAITS_S)


def _lives(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _both(*plays: Callable[[Running], None]) -> Callable[[Running], None]:
    def play(running: Running) -> None:
        for one in plays:
            one(running)

    return play


def _typed(key: bytes) -> Callable[[Running], None]:
    def play(running: Running) -> None:
        running.pid()
        running.type(key)

    return play


def _fails(path: str, status: int = 500) -> Callable[[Running], None]:
    def play(running: Running) -> None:
        assert running.get(path)[0] == status

    return play


def _asgi_requests(running: Running) -> None:
    found = {path: running.get(f"/{path}")[0] for path in ("fail", "database", "stream", "background", "ok")}
    assert found == {"fail": 500, "database": 500, "stream": 200, "background": 200, "ok": 200}
    running.wait_for("ValueError: in a background task")  # it runs once it has answered


def _kill_worker(begins: str, times: int) -> Callable[[Running], None]:
    """The one that answers; until another has begun, which is number `times`, and requests are answered."""

    def play(running: Running) -> None:
        os.kill(int(running.get("/pid")[1]), signal.SIGKILL)
        running.wait_for(begins, times)
        assert running.get("/pid")[0] == 200

    return play


_BOOTS: Final = "Booting worker with pid"  # gunicorn
_STARTS: Final = "Started server process"  # uvicorn


def _stop_under_way(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.get, "/slow")
        running.wait_for("slow begins")
        running.send(signal.SIGTERM)
        assert answer.result(_WAITS_S) == (200, b"slow ends")


def _stop_with_hanging(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.get, "/hang")
        running.wait_for("hang begins")
        running.send(signal.SIGTERM)
        with suppress(OSError, http.client.HTTPException):
            assert answer.result(_WAITS_S)[0] == 500


def _interrupt_twice(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.get, "/hang")
        running.wait_for("hang begins")
        running.type(b"\x03")
        running.wait_for("Waiting for (?:connections|background)")
        running.type(b"\x03")
        with suppress(OSError, http.client.HTTPException):
            assert answer.result(_WAITS_S)[0] == 500


def _hang(running: Running) -> None:
    with suppress(OSError, http.client.HTTPException):
        running.get("/hang")
    assert running.get("/pid")[0] == 200


def _reload(running: Running) -> None:
    """Break the program, and mend it."""
    assert running.get("/pid")[0] == 200
    good = (running.folder / "program.py").read_text()
    _save(running, "app = (", 1)
    running.wait_for("SyntaxError: ")
    _save(running, good, 2)
    running.wait_for("Application startup complete", 2)
    assert running.get("/pid")[0] == 200


def _save(running: Running, code: str, times: int) -> None:
    """Again where uvicorn had not looked at the file before: it says nothing of that."""
    for _ in range(3):
        (running.folder / "program.py").write_text(code)
        with suppress(AssertionError):
            running.wait_for("Reloading", times, 4)
            return
    raise AssertionError(running.said())


def _enqueue(running: Running) -> None:
    import redis
    import rq

    with redis.Redis.from_url(running.environ["REDIS"]) as connection:
        jobs = rq.Queue("shop", connection=connection)
        jobs.enqueue("program.fail")
        jobs.enqueue("program.die")
    running.wait_for("in a job of RQ")
    running.wait_for("terminated unexpectedly")


def _five_deaths(running: Running) -> None:
    running.wait_for("starting it again in 16 s")
    running.send(signal.SIGTERM)


# The programs.

PID: Final = "import os; print('pid', os.getpid(), flush=True)\n"
LOOP: Final = """
import asyncio, os
def run(main):
    if os.environ.get("LOOP") == "uvloop":
        import uvloop
        return uvloop.run(main)
    return asyncio.run(main)
"""

RAW_APP: Final = """
import asyncio, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    path = scope["path"].strip("/")
    if path == "fail":
        raise ValueError("in a raw request")
    if path in ("slow", "hang"):
        print(path, "begins", flush=True)
        await asyncio.sleep(0.5 if path == "slow" else 60)
    said = str(os.getpid()) if path == "pid" else path + " ends"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": said.encode()})
"""

ASGI: Final = """
import os, sqlite3
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

def raise_(text):
    raise ValueError(text)

async def fail(request):
    raise_("in a request")

def database(request):
    sqlite3.connect(":memory:").execute("SELECT * FROM orders")

async def stream(request):
    async def parts():
        yield "first"
        raise_("in the middle of a response")
    return StreamingResponse(parts())

async def background(request):
    return PlainTextResponse("later", background=BackgroundTask(raise_, "in a background task"))

async def pid(request):
    return PlainTextResponse(str(os.getpid()))

routes = [Route("/" + one.__name__, one) for one in (fail, database, stream, background, pid)]
app = Starlette(routes=[*routes, Route("/ok", pid)])
"""

VIEWS: Final = """
import os
import flask
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path

def raise_(text):
    raise ValueError(text)

shop = flask.Flask("shop")

@shop.get("/flask")
def in_flask():
    raise_("in a Flask view")

@shop.get("/pid")
def pid():
    return str(os.getpid())

def in_django(request):
    raise_("in a Django view")

urlpatterns = [path("django", in_django)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="none")
of_django = get_wsgi_application()

def plain(environ, start_response):
    raise_("in a plain one")

def app(environ, start_response):
    parts = {"/django": of_django, "/plain": plain}
    return parts.get(environ["PATH_INFO"], shop)(environ, start_response)
"""

CELERY: Final = """
import os, signal
from celery import Celery
from celery.signals import worker_ready

app = Celery("program", broker="memory://")

@app.task
def fail():
    raise ValueError("in a Celery task")

@app.task
def die():
    os.kill(os.getpid(), signal.SIGKILL)

@worker_ready.connect
def when_ready(**options):
    globals()[os.environ["TASK"]].delay()
"""

LIVES: Final = """
import os, sys
with open("lives", "a") as file:
    print(file=file)
    life = file.tell()
print("life", life, flush=True)
if life == int(os.environ.get("LAST", "3")):
    sys.exit(0)
"""

IN_THREADS = """
import atexit, gc, logging, multiprocessing, os, subprocess, sys, threading, weakref
from concurrent.futures import ThreadPoolExecutor

def fail(text):
    raise ValueError(text)

def wait_for(pid):
    os.waitpid(pid, 0)

class Dropped:
    def __del__(self):
        fail("in __del__")

class Thing:
    pass

def main():
    threads = [
        threading.Thread(target=fail, args=["in a thread"]),
        threading.Thread(target=fail, args=["in a daemon thread"], daemon=True),
        threading.Timer(0, fail, ["in a timer"]),
        threading.Thread(target=sys.exit, args=[3]),
    ]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(fail, "in a future that nobody reads")
    for thread in threads:
        thread.join()
    Dropped()
    thing = Thing()
    kept = weakref.ref(thing, lambda _: fail("in a weakref callback"))
    del thing
    gc.callbacks.append(once := lambda phase, info: fail("in a gc callback") if phase == "start" else None)
    gc.collect()
    gc.callbacks.remove(once)
    try:
        fail("caught and logged")
    except ValueError:
        logging.exception("the order is kept for later")
    child = os.fork()
    if not child:
        fail("in a forked child")
    wait_for(child)
    child = os.fork()
    if not child:
        os._exit(7)
    wait_for(child)
    for how in ("fork", "spawn"):
        child = multiprocessing.get_context(how).Process(target=fail, args=[f"in a child by {how}"])
        child.start()
        child.join()
    subprocess.run([sys.executable, "-c", "raise ValueError('in a Python program that it starts')"])
    subprocess.run(["sh", "-c", "exit 4"])
    atexit.register(fail, "in atexit")
    print("went on", flush=True)

if __name__ == "__main__":
    main()
"""

IN_A_LOOP = (
    LOOP
    + """
import gc, signal

def fail(text):
    raise LookupError(text)

async def fail_later(text):
    fail(text)

async def a_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(fail_later("a task of a group"))

async def main():
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(fail_later("a task that nobody awaits")), loop.create_task(a_group())]
    loop.call_soon(fail, "a callback")
    loop.create_future().set_exception(LookupError("a future that nobody reads"))
    loop.run_in_executor(None, fail, "a future of an executor")
    loop.add_signal_handler(signal.SIGUSR1, fail, "a handler of the loop")
    os.kill(os.getpid(), signal.SIGUSR1)
    cancelled = loop.create_task(asyncio.sleep(60))
    await asyncio.sleep(0.1)
    cancelled.cancel()
    del tasks
    gc.collect()
    await asyncio.sleep(0)
    global generator
    generator = parts()
    await anext(generator)
    print("went on", flush=True)

async def parts():
    try:
        yield 1
    finally:
        fail("a generator that is closed")

run(main())
"""
)

_IN_THREAD = Also("the name of the thread", "thread.name")
_IN_ASYNCIO = "asyncio"

GOING_ON = (
    Program(
        name="threads",
        code=IN_THREADS,
        rows=(
            Row(
                way="an exception ends a thread",
                told=_high("ValueError", "in a thread", "threading", _IN_THREAD),
                then=GOES_ON,
            ),
            Row(
                way="an exception ends a daemon thread",
                told=_high("ValueError", "in a daemon thread", "threading", _IN_THREAD),
                then=GOES_ON,
            ),
            Row(
                way="an exception in a `threading.Timer`",
                told=_high("ValueError", "in a timer", "threading"),
                then=GOES_ON,
            ),
            Row(way="`sys.exit(3)` in a thread", then=GOES_ON),
            Row(
                way="an exception in a `ThreadPoolExecutor`, whose future nobody reads",
                told=_high("ValueError", "in a future that nobody reads", "future"),
                then=GOES_ON,
            ),
            Row(
                way="an exception in `__del__`",
                told=_high("ValueError", "in __del__", "unraisable"),
                then=GOES_ON,
            ),
            Row(
                way="an exception in a callback of `weakref`",
                told=_high("ValueError", "in a weakref callback", "unraisable"),
                then=GOES_ON,
            ),
            Row(
                way="an exception in a callback of the garbage collector",
                told=_high("ValueError", "in a gc callback", "unraisable"),
                then=GOES_ON,
            ),
            Row(
                way="an exception that is caught and logged (`log.exception`)",
                told=_high("ValueError", "caught and logged", "logging"),
                then=GOES_ON,
            ),
            Row(
                way="an exception in a function of `atexit`",
                told=_high("ValueError", "in atexit", "unraisable"),
            ),
            Row(
                way="an exception ends a child by `os.fork`",
                told=_uncaught("ValueError", "in a forked child"),
                then=GOES_ON,
                who="nobody: the parent goes on",
            ),
            Row(way="a child by `os.fork` ends by `os._exit(7)`", then=GOES_ON, who="nobody: the parent goes on"),
            Row(
                way="an exception ends a child of `multiprocessing` (fork)",
                told=_high("ValueError", "in a child by fork", "multiprocessing"),
                then=GOES_ON,
                who="nobody: the parent goes on",
            ),
            Row(
                way="an exception ends a child of `multiprocessing` (spawn)",
                told=_high("ValueError", "in a child by spawn", "multiprocessing"),
                then=GOES_ON,
                who="nobody: the parent goes on",
            ),
            Row(
                way="an exception ends a Python program that it has started (`subprocess`)",
                told=_uncaught("ValueError", "in a Python program that it starts"),
                then=GOES_ON,
                who="nobody: the parent goes on",
            ),
            Row(
                way="another program that it has started fails (`subprocess`)",
                then=GOES_ON,
                who="nobody: the parent goes on",
            ),
        ),
    ),
    Program(
        name="loop",
        code=IN_A_LOOP,
        loops=True,
        rows=(
            Row(
                way="an exception ends a task that nobody awaits",
                told=_high("LookupError", "a task that nobody awaits", _IN_ASYNCIO),
                then=GOES_ON,
            ),
            Row(
                way="an exception in a `TaskGroup` of a task that nobody awaits",
                told=_high(
                    "ExceptionGroup",
                    "unhandled errors in a TaskGroup",
                    _IN_ASYNCIO,
                    Also("each of the group", "stack", "a task of a group"),
                ),
                then=GOES_ON,
            ),
            Row(
                way="an exception in a callback (`call_soon`, `call_later`)",
                told=_high("LookupError", "a callback", _IN_ASYNCIO),
                then=GOES_ON,
            ),
            Row(
                way="an exception in a future that nobody reads",
                told=_high("LookupError", "a future that nobody reads", _IN_ASYNCIO),
                then=GOES_ON,
            ),
            Row(
                way="an exception in `run_in_executor`, whose future nobody reads",
                told=_high("LookupError", "a future of an executor", _IN_ASYNCIO),
                then=GOES_ON,
            ),
            Row(
                way="an exception in a signal handler of the loop",
                told=_high("LookupError", "a handler of the loop", _IN_ASYNCIO),
                then=GOES_ON,
            ),
            Row(
                way="an exception while an asynchronous generator is closed",
                told=_high("LookupError", "a generator that is closed", _IN_ASYNCIO),
                then=GOES_ON,
            ),
            Row(way="a task is cancelled", then=GOES_ON),
        ),
    ),
)

ENDING = (
    Program(
        name="uncaught",
        code="raise ValueError('the end')",
        exit=1,
        rows=(Row(way="an uncaught exception", told=_uncaught("ValueError", "the end")),),
    ),
    Program(
        name="uncaught-in-a-loop",
        code=LOOP + "async def main(): raise ValueError('the end')\nrun(main())",
        exit=1,
        loops=True,
        rows=(Row(way="an uncaught exception in `asyncio.run`", told=_uncaught("ValueError", "the end")),),
    ),
    Program(
        name="caused",
        code="""
try:
    int("many")
except ValueError as why:
    raise RuntimeError("no order") from why
""",
        exit=1,
        rows=(
            Row(
                way="an uncaught exception with a cause",
                told=_uncaught("RuntimeError", "no order", Also("its cause", "stack", "ValueError: invalid literal")),
            ),
        ),
    ),
    Program(
        name="group",
        code=LOOP
        + """
async def fail(text):
    raise ValueError(text)
async def main():
    async with asyncio.TaskGroup() as group:
        group.create_task(fail("first"))
        group.create_task(fail("second"))
run(main())
""",
        exit=1,
        loops=True,
        rows=(
            Row(
                way="an exception group (`TaskGroup`)",
                told=_uncaught(
                    "ExceptionGroup", "2 sub-exceptions", Also("each of the group", "stack", "ValueError: second")
                ),
            ),
        ),
    ),
    Program(
        name="recursion",
        code="def f(): f()\nf()",
        exit=1,
        rows=(Row(way="`RecursionError`", told=_uncaught("RecursionError", "maximum recursion depth")),),
    ),
    Program(
        name="memory-error",
        code="""
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, -1))
taken = []
while True:
    taken.append(bytearray(2**20))
""",
        exit=1,
        rows=(Row(way="`MemoryError` (a limit as by `ulimit -v`)", told=_uncaught("MemoryError", "")),),
    ),
    Program(
        name="in-a-handler",
        code="""
import os, signal
def fail(number, frame):
    raise ValueError("in a signal handler")
signal.signal(signal.SIGUSR1, fail)
os.kill(os.getpid(), signal.SIGUSR1)
""",
        exit=1,
        rows=(Row(way="an exception in a signal handler", told=_uncaught("ValueError", "in a signal handler")),),
    ),
    Program(
        name="syntax",
        code="print(",
        exit=1,
        rows=(Row(way="a `SyntaxError` in the program", told=_uncaught("SyntaxError", "was never closed")),),
    ),
    Program(
        name="no-module",
        code="import no_such_module",
        exit=1,
        rows=(Row(way="a module that is missing", told=_uncaught("ModuleNotFoundError", "no_such_module")),),
    ),
    Program(
        name="exit-code",
        code="import sys; sys.exit(3)",
        exit=3,
        rows=(Row(way="`sys.exit(3)`", told=_death("exited with code 3")),),
    ),
    Program(
        name="exit-text",
        code="import sys; sys.exit('no licence')",
        exit=1,
        rows=(
            Row(
                way='`sys.exit("no licence")`',
                told=_death("exited with code 1", Also("the end of stderr", "process.stderr", "no licence")),
            ),
        ),
    ),
    Program(
        name="left",
        code="import os; os._exit(9)",
        exit=9,
        rows=(Row(way="`os._exit(9)`", told=_death("exited with code 9")),),
    ),
    Program(
        name="pipe",
        command="sh -c '{ tocsin run -- python program.py; echo code $? >&2; } | head -n 1'",
        code="""
import time
while True:
    print("a line", flush=True)
    time.sleep(0.01)
""",
        play=_says("code 1"),
        rows=(
            Row(
                way="nobody reads its stdout any more (`… | head`)",
                told=_uncaught("BrokenPipeError", "Broken pipe"),
                then=ends(1),
                who=SUPERVISED,
            ),
        ),
    ),
    Program(
        name="segfault",
        code="import ctypes; ctypes.string_at(0)",
        exit=-signal.SIGSEGV,
        rows=(Row(way="a segmentation fault", told=_death("was killed by SIGSEGV", _STACKS)),),
    ),
    Program(
        name="abort",
        code="import os; os.abort()",
        exit=-signal.SIGABRT,
        rows=(Row(way="`abort()`, as C libraries call it", told=_death("was killed by SIGABRT", _STACKS)),),
    ),
    Program(
        name="c-stack",
        code="import sys; sys.setrecursionlimit(10**8)\nf = lambda x: max([x], key=f)\nf(1)",
        exit=-signal.SIGSEGV,
        rows=(Row(way="the stack of C overflows", told=_death("was killed by SIGSEGV", _STACKS)),),
    ),
    Program(
        name="alarm",
        code="import signal; signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()",
        exit=-signal.SIGALRM,
        rows=(Row(way="an alarm that nobody handles (`SIGALRM`)", told=_death("was killed by SIGALRM")),),
    ),
    Program(
        name="exec",
        code="import os; os.execvp('sh', ['sh', '-c', 'exit 5'])",
        exit=5,
        rows=(Row(way="another program takes its place (`os.exec…`), and fails", told=_death("exited with code 5")),),
    ),
)


PAUSES = PID + "import signal; signal.pause()"

KILLED = (
    Program(
        name="killed",
        code=PAUSES,
        play=_kill_program(signal.SIGKILL),
        exit=-signal.SIGKILL,
        rows=(
            Row(
                way="`kill -9` of the program",
                told=_death("was killed by SIGKILL", Also("its memory", "process.memory_bytes")),
            ),
        ),
    ),
    Program(
        name="killed-parent",
        code=PAUSES,
        play=_kill_parent,
        exit=-signal.SIGKILL,
        rows=(
            Row(
                way="`kill -9` of `tocsin run`",
                told=_death("ended without a word: likely killed"),
                then="ends with it; told by the next start",
            ),
        ),
    ),
)
OTHERS = (
    Program(
        name="node",
        command="tocsin run -- node -e 'throw new RangeError(\"no such order\")'",
        exit=1,
        needs="node",
        rows=(
            Row(
                way="Node: an uncaught error",
                told=_death("no such order", Also("its stack", "stack", "at "), kind="RangeError"),
            ),
        ),
    ),
    Program(
        name="shell",
        command="tocsin run -- sh -c 'echo no disk >&2; exit 4'",
        exit=4,
        rows=(
            Row(
                way="a shell script ends by `exit 4`",
                told=_death("exited with code 4", Also("the end of stderr", "process.stderr", "no disk")),
            ),
        ),
    ),
    Program(
        name="shell-terminated",
        command="tocsin run -- sh -c 'echo pid $$; exec sleep 60'",
        play=_kill_program(signal.SIGTERM),
        exit=-signal.SIGTERM,
        rows=(Row(way="`SIGTERM` for it alone, and not by way of `tocsin run`", told=_note("was killed by SIGTERM")),),
    ),
    Program(
        name="no-file",
        command="tocsin run -- python nothing.py",
        exit=2,
        rows=(
            Row(
                way="Python: no such file",
                told=_death("exited with code 2", Also("the end of stderr", "process.stderr", "No such file")),
            ),
        ),
    ),
    Program(
        name="not-found",
        command="tocsin run -- no-such-program",
        exit=127,
        rows=(Row(way="there is no such program", who="your supervisor, in vain: the message is on stderr"),),
    ),
    Program(
        name="not-runnable",
        command="tocsin run -- ./program.py",
        exit=126,
        rows=(
            Row(
                way="the file may not be run (mode, format)",
                who="your supervisor, in vain: the message is on stderr",
            ),
        ),
    ),
)

INIT = "import tocsin; tocsin.init()\n"

ALONE_ONES = (
    Program(
        name="alone-uncaught",
        command=ALONE,
        code=INIT + "raise ValueError('the end')",
        exit=1,
        rows=(Row(way="an uncaught exception", told=_uncaught("ValueError", "the end")),),
    ),
    Program(
        name="alone-killed",
        command=ALONE,
        code=INIT + PAUSES,
        play=_kill_program(signal.SIGKILL),
        exit=-signal.SIGKILL,
        rows=(Row(way="`kill -9`", told=_death("ended without a word: likely killed")),),
    ),
    Program(
        name="alone-left",
        command=ALONE,
        code=INIT + "import os; os._exit(9)",
        exit=9,
        rows=(Row(way="`os._exit(9)`", told=_death("left by os._exit(9)")),),
    ),
    Program(
        name="alone-segfault",
        command=ALONE,
        code=INIT + "import ctypes; ctypes.string_at(0)",
        exit=-signal.SIGSEGV,
        rows=(Row(way="a segmentation fault", told=_death("crashed by SIGSEGV (likely)", _STACKS)),),
    ),
    Program(
        name="alone-exit-code",
        command=ALONE,
        code=INIT + "import sys; sys.exit(3)",
        exit=3,
        rows=(Row(way="`sys.exit(3)`"),),
    ),
    Program(
        name="alone-terminated",
        command=ALONE,
        code=INIT + PAUSES,
        play=_send(signal.SIGTERM),
        exit=-signal.SIGTERM,
        rows=(Row(way="`SIGTERM`"),),
    ),
)

TERM: Final = _send(signal.SIGTERM)
STOP: Final = _send(signal.SIGTERM, is_up=True)

STOPS = (
    Program(
        name="orderly",
        code="print('done')",
        rows=(Row(way="it comes to its end, or `sys.exit(0)`"),),
    ),
    Program(
        name="left-in-order",
        code="import os; os._exit(0)",
        rows=(Row(way="`os._exit(0)`"),),
    ),
    Program(
        name="terminated",
        code=PAUSES,
        play=TERM,
        rows=(Row(way="`SIGTERM`, which it does not handle", who=ASKED),),
    ),
    Program(
        name="terminated-itself",
        code=PAUSES,
        play=_kill_program(signal.SIGTERM),
        rows=(Row(way="`SIGTERM` for the program alone, and not by way of `tocsin run`", who=ASKED),),
    ),
    Program(
        name="hung-up",
        code=PAUSES,
        play=_send(signal.SIGHUP),
        rows=(Row(way="`SIGHUP`: the terminal is closed", who=ASKED),),
    ),
    Program(
        name="handled",
        code="import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n" + PAUSES,
        play=TERM,
        rows=(Row(way="`SIGTERM`, which it handles", who=ASKED),),
    ),
    Program(
        name="stopped-badly",
        code="import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(6))\n" + PAUSES,
        play=TERM,
        exit=6,
        rows=(Row(way="`SIGTERM`, and it fails on its way out (`sys.exit(6)`)", told=_death("exited with code 6")),),
    ),
    Program(
        name="closing",
        code="""
import tocsin
def close():
    raise ValueError("cannot close")
tocsin.on_shutdown(close)
tocsin.on_shutdown(lambda: print("closed the rest", flush=True))
"""
        + PAUSES,
        play=_both(TERM, _says("closed the rest")),
        rows=(
            Row(
                way="`SIGTERM`, and a callback of `tocsin.on_shutdown` raises",
                told=_high("ValueError", "cannot close", "on_shutdown"),
                then="calls the others, " + ends(0),
                who=ASKED,
            ),
        ),
    ),
    Program(
        name="interrupted",
        at_terminal=True,
        code=PAUSES,
        play=_typed(b"\x03"),
        rows=(Row(way="Ctrl-C", who=ASKED),),
    ),
    Program(
        name="interrupted-loop",
        at_terminal=True,
        code=LOOP + f"async def main():\n    {PID}    await asyncio.sleep(60)\nrun(main())",
        play=_typed(b"\x03"),
        loops=True,
        rows=(Row(way="Ctrl-C in `asyncio.run`", who=ASKED),),
    ),
    Program(
        name="quit",
        code=PAUSES,
        play=_send(signal.SIGQUIT),
        exit=-signal.SIGQUIT,
        rows=(Row(way="`SIGQUIT`: somebody wants a core dump", who=ASKED),),
    ),
    Program(
        name="stubborn",
        code="import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('not now', flush=True))\n"
        + PID
        + "while True: signal.pause()",
        play=_both(TERM, _says("not now"), _kill_program(signal.SIGKILL)),
        exit=-signal.SIGKILL,
        rows=(
            Row(
                way="`SIGTERM`, and no end: the supervisor sends `SIGKILL` to all (systemd, PM2 with `treekill`)",
                told=_note("stop ran out of time"),
                who=ASKED,
            ),
        ),
    ),
    Program(
        name="stubborn-alone",
        code="import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('not now', flush=True))\n"
        + PID
        + "while True: signal.pause()",
        play=_both(TERM, _says("not now"), _kill_parent),
        exit=-signal.SIGKILL,
        rows=(
            Row(
                way="`SIGTERM`, and no end: the supervisor sends `SIGKILL` to the first (Docker, PM2)",
                told=_note("stop ran out of time"),
                then="ends with it; told by the next start",
                who=ASKED,
            ),
        ),
    ),
    Program(
        name="served",
        command="tocsin run -- uvicorn program:app --port 0",
        code=RAW_APP,
        play=_stop_under_way,
        exit=0,
        rows=(Row(way="`SIGTERM` for uvicorn, with a request under way", then="answers it, " + ends(0), who=ASKED),),
    ),
    Program(
        name="served-late",
        command="tocsin run -- uvicorn program:app --port 0",
        code=RAW_APP,
        play=_stop_with_hanging,
        environ={"TOCSIN_SHUTDOWN_TIMEOUT_S": "0.3"},
        exit=0,
        rows=(
            Row(
                way="`SIGTERM` for uvicorn, with a request that takes too long",
                told=_high(
                    "",
                    "GET /hang was cut off",
                    "shutdown",
                    Also("where it was", "stack", "program.py"),
                    severity="medium",
                ),
                then="cuts it off, " + ends(0),
                who=ASKED,
            ),
        ),
    ),
    Program(
        name="served-twice",
        at_terminal=True,
        command="tocsin run -- uvicorn program:app --port 0",
        code=RAW_APP,
        play=_interrupt_twice,
        exit=0,
        rows=(
            Row(
                way="a second Ctrl-C, while uvicorn waits for a request",
                then="cuts it off, " + ends(0),
                who=ASKED,
            ),
        ),
    ),
)

SERVERS = (
    Program(
        name="requests",
        is_heavy=True,
        command="tocsin run -- uvicorn program:app --port 0 --workers 2",
        code=ASGI,
        play=_both(_asgi_requests, _kill_worker(_STARTS, 3), STOP),
        rows=(
            Row(
                way="an exception in a request (ASGI: FastAPI, Starlette)",
                told=_high("ValueError", "in a request", "asgi"),
                then=ANSWERS_500,
            ),
            Row(
                way="a database error in a request",
                told=_high("OperationalError", "no such table: orders", "asgi"),
                then=ANSWERS_500,
            ),
            Row(
                way="an exception while a response is streamed",
                told=_high("ValueError", "in the middle of a response", "asgi"),
                then="cuts the response off, goes on",
            ),
            Row(
                way="an exception in a background task of a request",
                told=_high("ValueError", "in a background task", "asgi"),
                then="has answered, goes on",
            ),
            Row(
                way="`kill -9` of a worker of uvicorn",
                told=_death("ended without a word: likely killed"),
                then="the others go on",
                who="uvicorn starts another",
            ),
        ),
    ),
    Program(
        name="gunicorn-uvicorn",
        is_heavy=True,
        command="tocsin run -- gunicorn program:app --bind 127.0.0.1:0 --worker-class uvicorn_worker.UvicornWorker",
        code=RAW_APP,
        play=_both(_fails("/fail"), _kill_worker(_BOOTS, 2), STOP),
        rows=(
            Row(
                way="an exception in a request (gunicorn with uvicorn's workers)",
                told=_high("ValueError", "in a raw request", "asgi"),
                then=ANSWERS_500,
            ),
            Row(
                way="`kill -9` of such a worker",
                told=_death("ended without a word: likely killed"),
                then="the others go on",
                who="gunicorn starts another",
            ),
        ),
    ),
    Program(
        name="views",
        is_heavy=True,
        command="tocsin run -- gunicorn program:app --bind 127.0.0.1:0",
        code=VIEWS,
        play=_both(_fails("/flask"), _fails("/django"), _fails("/plain"), _kill_worker(_BOOTS, 2), STOP),
        rows=(
            Row(
                way="an exception in a view of Flask",
                told=_high("ValueError", "in a Flask view", "wsgi"),
                then=ANSWERS_500,
            ),
            Row(
                way="an exception in a view of Django",
                told=_high("ValueError", "in a Django view", "wsgi"),
                then=ANSWERS_500,
            ),
            Row(
                way="an exception in a plain WSGI application",
                told=_high("ValueError", "in a plain one", "wsgi"),
                then=ANSWERS_500,
            ),
            Row(
                way="`kill -9` of a worker of gunicorn",
                told=_death("ended without a word: likely killed"),
                then="the others go on",
                who="gunicorn starts another",
            ),
        ),
    ),
    Program(
        name="hanging",
        command="tocsin run -- gunicorn program:app --bind 127.0.0.1:0 --timeout 1",
        code="""
import os, time
def app(environ, start_response):
    if environ["PATH_INFO"] == "/hang":
        time.sleep(60)
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
""",
        play=_both(_hang, STOP),
        rows=(
            Row(
                way="gunicorn ends a worker that hangs (`--timeout`)",
                told=_high(
                    "SystemExit",
                    "gunicorn ended this worker, which stood still for 1 s",
                    "wsgi",
                    Also("where it hung", "stack", "time.sleep(60)"),
                    severity="critical",
                ),
                then="the others go on",
                who="gunicorn starts another",
            ),
        ),
    ),
    Program(
        name="lifespan",
        command="tocsin run -- uvicorn program:app --port 0",
        code="""
from contextlib import asynccontextmanager
from starlette.applications import Starlette

@asynccontextmanager
async def lifespan(app):
    raise ConnectionError("no database")
    yield
app = Starlette(lifespan=lifespan)
""",
        exit=3,
        rows=(
            Row(
                way="an exception in the application's start (lifespan)",
                told=_high("ConnectionError", "no database", "asgi", severity="critical"),
            ),
        ),
    ),
    Program(
        name="app-import",
        command="tocsin run -- uvicorn program:app --port 0",
        code="raise KeyError('SECRET')",
        exit=1,
        rows=(
            Row(
                way="an exception while the server imports the application",
                told=_uncaught("KeyError", "SECRET"),
            ),
        ),
    ),
    Program(
        name="gunicorn-import",
        command="tocsin run -- gunicorn program:app --bind 127.0.0.1:0",
        code="raise KeyError('SECRET')",
        exit=3,
        rows=(
            Row(
                way="an exception while a worker of gunicorn imports the application",
                told=_high("KeyError", "SECRET", "gunicorn", severity="critical"),
            ),
        ),
    ),
    Program(
        name="gunicorn-no-app",
        command="tocsin run -- gunicorn program:app --bind 127.0.0.1:0",
        code="shop = None",
        exit=4,
        rows=(
            Row(
                way="gunicorn finds no application in the module",
                told=_high("AppImportError", "Failed to find attribute 'app'", "gunicorn", severity="critical"),
            ),
        ),
    ),
    Program(
        name="reload",
        command="tocsin run -- uvicorn program:app --port 0 --reload",
        code=RAW_APP,
        play=_both(_reload, STOP),
        rows=(
            Row(
                way="a `SyntaxError` under `uvicorn --reload`",
                told=_high("SyntaxError", "was never closed", "multiprocessing"),
                then="waits for the next change",
                who="uvicorn, when the file is saved again",
            ),
        ),
    ),
)

_CELERY = "tocsin run -- celery -A program worker --concurrency 1 --without-mingle --without-gossip -l warning"

JOBS = (
    Program(
        name="celery",
        is_heavy=True,
        command=_CELERY,
        code=CELERY,
        environ={"TASK": "fail"},
        play=_both(_says(".*in a Celery task.*"), STOP),
        rows=(
            Row(
                way="an exception in a task of Celery",
                told=_high("ValueError", "in a Celery task", "celery"),
                then=GOES_ON,
            ),
        ),
    ),
    Program(
        name="celery-killed",
        is_gate=True,  # Celery waits for ten seconds
        command=_CELERY,
        code=CELERY,
        environ={"TASK": "die"},
        play=_both(_says(".*WorkerLostError.*"), STOP),
        rows=(
            Row(
                way="`kill -9` of the process that runs a task of Celery",
                told=_high("WorkerLostError", "signal 9 (SIGKILL)", "celery", severity="critical"),
                then=GOES_ON,
                who="Celery starts another process",
            ),
        ),
    ),
    Program(
        name="rq",
        is_heavy=True,
        needs="redis",
        command="tocsin run -- rq worker --url $REDIS shop",
        code="""
import os, signal
def fail():
    raise ValueError("in a job of RQ")
def die():
    os.kill(os.getpid(), signal.SIGKILL)
""",
        play=_both(_enqueue, STOP),
        rows=(
            Row(
                way="an exception in a job of RQ",
                told=_high("ValueError", "in a job of RQ", "rq"),
                then=GOES_ON,
            ),
            Row(
                way="`kill -9` of the process that runs a job of RQ",
                told=_high("", "the work horse of RQ was lost in program.die", "rq", severity="critical"),
                then=GOES_ON,
                who="RQ starts another for the next job",
            ),
        ),
    ),
)

RESTARTS = (
    Program(
        name="restarted",
        is_heavy=True,
        command="tocsin run --restart -- python program.py",
        code=LIVES + 'if life == 1: raise ValueError("in the first life")\n' + PAUSES,
        play=_both(
            _says(".*starting it again in 1 s"),
            _kill_program(signal.SIGKILL),
            _says(".*starting it again in 2 s"),
            _says("life 3"),
        ),
        rows=(
            Row(
                way="an uncaught exception, with `--restart`",
                told=_uncaught("ValueError", "in the first life"),
                then="starts anew after 1 s",
                who=BY_US,
            ),
            Row(
                way="`kill -9`, and so soon after the first death",
                told=_death("was killed by SIGKILL"),
                then="starts anew after 2 s",
                who=BY_US,
            ),
        ),
    ),
    Program(
        name="at-the-limit",
        command="tocsin run --max-memory 120M -- python program.py",
        code=LIVES + "taken = bytearray(150 * 2**20)\n" + PAUSES,
        environ={"LAST": "2"},
        play=_both(_says(".*takes .* MB of memory, of 120 MB: it is stopped"), _says("life 2")),
        rows=(
            Row(
                way="its memory reaches `--max-memory`",
                told=(*_high("", "of its limit", "memory"), *_note("more than 120 MB", kind="MemoryLimit")),
                then="is asked to stop, starts anew",
                who=BY_US,
            ),
        ),
    ),
    Program(
        name="crash-loop",
        command="""sh -c 'for n in 1 2 3 4 5; do (tocsin run -- sh -c "exit 4"; echo code $?) & done; wait'""",
        play=_says("code 4", 5),
        rows=(
            Row(
                way="it ends again and again (five times in ten minutes)",
                told=(*_death("exited with code 4", count=5), *_death("died 5 times", kind="CrashLoop")),
                then=ends(4),
                who=SUPERVISED,
            ),
        ),
    ),
    Program(
        name="crash-loop-restarted",
        is_gate=True,
        command="tocsin run --restart -- python program.py",
        code=PID + "raise ValueError('in every life')",
        play=_five_deaths,
        rows=(
            Row(
                way="the same, with `--restart`",
                told=(
                    *_high("ValueError", "in every life", "excepthook", severity="critical", count=5),
                    *_death("died 5 times", kind="CrashLoop"),
                ),
                then="starts anew after 1, 2, 4, 8 … 60 s",
                who=BY_US,
            ),
        ),
    ),
)

OUT_OF_MEMORY = (
    Program(
        name="out-of-memory",
        needs="cgroup",
        command="sh -c 'echo $$ > $CGROUP/cgroup.procs && exec tocsin run -- python program.py'",
        code="taken = [bytearray(b'x' * 2**20) for _ in range(4096)]",
        environ={"TOCSIN_MEMORY_WARN_PERCENT": "0"},  # it comes to that only on a slow machine
        exit=-signal.SIGKILL,
        rows=(
            Row(
                way="the kernel kills it for want of memory (a container's limit)",
                told=_death(
                    "was killed by SIGKILL (out of memory)", Also("the kernel's counter", "process.oom_kills", "1")
                ),
            ),
        ),
    ),
)

SECTIONS: Final[Mapping[str, Sequence[Program]]] = {
    "An exception, and the program goes on": GOING_ON,
    "Requests and servers": SERVERS,
    "Jobs": JOBS,
    "It ends by itself": ENDING,
    "It is killed": (*KILLED, *OUT_OF_MEMORY),
    "It ends since somebody wants it to": STOPS,
    "`tocsin run` starts it again": RESTARTS,
    "Other programs under `tocsin run`": OTHERS,
    "Without `tocsin run`, by `tocsin.init()` alone": ALONE_ONES,
}

PROGRAMS: Final = [program for programs in SECTIONS.values() for program in programs]
