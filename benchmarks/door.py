"""
From the body of a request to committed rows: what the door takes, and where the server's time goes.

    python -m benchmarks.door [--full 60000] [--errors 200000] [--requests 8000] [--gzip]

PostgreSQL (durable: fsync, full page writes and synchronous commits are on), the server and the sender
share this machine, each in a process of its own. The errors are Python exceptions as log records in
protobuf, 512 in a batch, with 200 different stacks, 3 to 4 KB each; every one is different, and is in
the database at the end, or counted there. A rate is taken until the last one is committed. First with
the cap of full errors lifted, so that each becomes a row; then as it is by default, where of a minute's
errors the first hundred of each group are rows and the others count; then one error in each request. The
rows of the first run also go in by ``COPY`` into a table beside and ``INSERT … ON CONFLICT``, without
anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

BATCH = 512
STACKS = 200
FRAMES = 18
CONNECTIONS = 8
TOKEN = "bench"
DURABLE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"}

_NUMBER = b"@NUMBER@"  # eight bytes in each message and trace id, which the sender replaces


def main() -> None:
    """Run all of it, or what a line of its own asks for."""
    if sys.argv[1:2] == ["serve"]:
        _serve(Path(sys.argv[2]), is_capped=sys.argv[3] == "capped")
        return
    if sys.argv[1:2] == ["send"]:
        _send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), is_gzip=sys.argv[5] == "gzip")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=int, default=60_000, help="errors of the run without a cap")
    parser.add_argument("--errors", type=int, default=200_000, help="of the run as it is by default")
    parser.add_argument("--requests", type=int, default=8_000, help="of the run with one error in each")
    parser.add_argument("--gzip", action="store_true", help="batches are packed by the sender, on the same cores")
    arguments = parser.parse_args()
    size = len(_body(BATCH)) // BATCH
    print(f"batches of {BATCH}, {size} bytes an error, {STACKS} stacks; PostgreSQL durable; this machine alone")
    print(f"{'':28} {'errors/s':>9} {'lost':>6} {'rows':>7} {'p50 ms':>7} {'p99 ms':>7} {'PSS MiB':>8}")
    for name, is_capped, count, each in (
        ("batches, all in full", False, math.ceil(arguments.full / BATCH), BATCH),
        ("batches, capped", True, math.ceil(arguments.errors / BATCH), BATCH),
        ("one in each request", False, arguments.requests, 1),
    ):
        with _durable_postgres() as server:
            steps = _run(name, server.url, count, each, is_capped=is_capped, is_gzip=arguments.gzip)
            copied = asyncio.run(_copy(server.url)) if (each, is_capped) == (BATCH, False) else None
        _print_steps(steps, count * each)
        if copied is not None:
            print(f"{'  COPY, INSERT ON CONFLICT':28} {copied:9,.0f}   the same rows, nothing else", flush=True)


def _run(name: str, url: str, count: int, each: int, *, is_capped: bool, is_gzip: bool) -> dict[str, list[float]]:
    from tests.waiting import eventually

    with tempfile.TemporaryDirectory() as folder, _server(Path(folder), url, is_capped=is_capped) as process:
        address = eventually(lambda: _address(Path(folder)), 60)
        eventually(lambda: _is_ready(address), 60)
        _sender(address, 2, min(each, 200), is_gzip=is_gzip)  # brings the libraries in
        warm = 2 * min(each, 200)
        asyncio.run(_until(url, warm))
        before = _cpu_of_children(server_pids := _backends(url))
        process.send_signal(signal.SIGUSR1)
        begun = time.monotonic()
        answer = json.loads(_sender(address, count, each, is_gzip=is_gzip))
        seconds = asyncio.run(_until(url, warm + count * each)) - begun
        used = _cpu_of_children(server_pids | _backends(url)) - before
        stored, rows = asyncio.run(_counts(url))
        figures = f"{answer['p50'] * 1000:7.0f} {answer['p99'] * 1000:7.0f} {_pss_mib(process.pid):8.0f}"
        lost = warm + count * each - stored
        print(f"{name:28} {count * each / seconds:9,.0f} {lost:6} {rows:7} {figures}", flush=True)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        steps: dict[str, list[float]] = json.loads((Path(folder) / "steps.json").read_text())
    steps["PostgreSQL's processes"] = [used, used]
    if lost:
        sys.exit("lost or doubled")
    return steps


def _print_steps(steps: dict[str, list[float]], errors: int) -> None:
    print(f"  {'of each error, us':26} {'CPU':>9} {'by clock':>9}")
    for name, (used, passed) in steps.items():
        print(f"  {name:26} {used / errors * 1e6:9.1f} {passed / errors * 1e6:9.1f}")


# The server, with a clock at each step


def _serve(folder: Path, *, is_capped: bool) -> None:
    from tocsin.exporter import database, door, spool, throttle
    from tocsin.serve import serve
    from tocsin.settings import Settings
    from tocsin.store import engine

    if not is_capped:
        defaults = throttle.Throttle.__init__.__kwdefaults__
        assert defaults is not None
        defaults.update(full_a_minute=10**9)
    steps: dict[str, list[float]] = {}

    def clocked(name: str, holder: Any, attribute: str) -> None:
        """Sum up what a call takes of its thread's time, and of the clock's."""
        step = steps.setdefault(name, [0.0, 0.0])
        inner: Callable[..., Any] = getattr(holder, attribute)

        def outer(*args: Any, **kwargs: Any) -> Any:
            used, passed = time.thread_time(), time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                step[0] += time.thread_time() - used
                step[1] += time.perf_counter() - passed

        setattr(holder, attribute, outer)

    clocked("inflate, read, clean, scrub", door.Door, "_read")
    clocked("append to the spool, sync", spool.Spool, "append_all")
    clocked("read the spool", spool, "read_segment")
    clocked("decode", database.Database, "_decode")
    clocked("throttle", throttle.Throttle, "sift")
    clocked("SQL", engine.PostgresStore, "write_now")
    main = threading.get_ident()
    begun = [0.0, 0.0, 0.0]

    def begin(*args: object) -> None:
        """Forget what the start has cost."""
        for step in steps.values():
            step[:] = 0.0, 0.0
        begun[:] = _thread_time(main), time.process_time(), time.perf_counter()

    signal.signal(signal.SIGUSR1, begin)
    code = serve(Settings.load(), host="127.0.0.1", port=0)
    steps = {"HTTP, answers, alerts": [_thread_time(main) - begun[0], time.perf_counter() - begun[2]]} | steps
    others = time.process_time() - begun[1] - sum(used for used, _ in steps.values())
    (folder / "steps.json").write_text(json.dumps(steps | {"the rest": [others, others]}))
    sys.exit(code)


def _thread_time(thread: int) -> float:
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


@contextmanager
def _server(folder: Path, url: str, *, is_capped: bool) -> Iterator[subprocess.Popen[bytes]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))}
    settings = {"TOCSIN_DATABASE_URL": url, "TOCSIN_SPOOL_DIR": f"{folder}/spool", "TOCSIN_TOKEN": TOKEN}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.door", "serve", str(folder), "capped" if is_capped else "full"],
            env=kept | settings | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _address(folder: Path) -> str:
    found = re.search(r"listens on http://(\S+)", (folder / "log").read_text())
    return found[1] if found else ""


def _is_ready(address: str) -> bool:
    with _connected(address) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        return connection.recv(100).startswith(b"HTTP/1.1 200")


# The sender


def _sender(address: str, count: int, each: int, *, is_gzip: bool) -> str:
    command = [sys.executable, "-m", "benchmarks.door", "send", address, str(count), str(each)]
    done = subprocess.run([*command, "gzip" if is_gzip else "plain"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def _send(address: str, count: int, each: int, *, is_gzip: bool) -> None:
    """Send so many bodies by a few connections that stay open; each waits for its answer."""
    bodies = [_body(each, first) for first in range(STACKS if each == 1 else 1)]
    numbers = iter(range(count))
    taking = threading.Lock()
    begin = random.randrange(10**7)
    waited: list[float] = []
    failed: list[bytes] = []

    def work() -> None:
        with _connected(address) as connection:
            while not failed:
                with taking:
                    number = next(numbers, None)
                if number is None:
                    return
                body = bodies[number % len(bodies)].replace(_NUMBER, b"%08d" % (begin + number))
                packed = gzip.compress(body, 1) if is_gzip else body
                encoding = b"content-encoding: gzip\r\n" if is_gzip else b""
                head = (
                    b"POST /v1/logs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %s\r\n"
                    b"content-type: application/x-protobuf\r\n%scontent-length: %d\r\n\r\n"
                ) % (TOKEN.encode(), encoding, len(packed))
                before = time.perf_counter()
                while not (answer := _ask(connection, head, packed)).startswith(b"HTTP/1.1 200"):
                    if b" 503 " not in answer[:20]:
                        failed.append(answer)
                        return
                    time.sleep(0.05)
                waited.append(time.perf_counter() - before)

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS if each == 1 else 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(str(failed[0]))
    ordered = sorted(waited)
    print(json.dumps({"p50": ordered[len(ordered) // 2], "p99": ordered[math.ceil(0.99 * len(ordered)) - 1]}))


def _connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _ask(connection: socket.socket, head: bytes, body: bytes) -> bytes:
    connection.sendall(head + body)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(4096) or b"\r\n\r\nclosed"
    start, _, rest = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", start)
    while length and len(rest) < int(length[1]):
        rest += connection.recv(4096)
    return answer


def _body(each: int, first: int = 0) -> bytes:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    for key, value in (("service.name", "shop"), ("service.version", "2.4.0"), ("service.instance.id", "i-1")):
        resource.resource.attributes.add(key=key).value.string_value = value
    scope = resource.scope_logs.add()
    for place in range(each):
        number = first + place
        kind = f"shop.errors.Error{number % STACKS}"
        said = f"order {_NUMBER.decode()}-{place} of customer {number * 7919 % 100_003} cannot be sent"
        record = scope.log_records.add(
            time_unix_nano=time.time_ns(),
            severity_number=17,
            event_name="exception",
            trace_id=_NUMBER + place.to_bytes(8, "big"),
            span_id=(place + 1).to_bytes(8, "big"),
        )
        record.body.string_value = said
        attributes = {
            "exception.type": kind,
            "exception.message": said,
            "exception.stacktrace": f"{_stack(number % STACKS)}\n{kind}: {said}",
            "http.request.method": "POST",
            "http.route": f"/orders/{{id}}/send/{number % 40}",
            "url.path": f"/orders/{place}/send/{number % 40}",
            "user.id": f"u{number * 31 % 5003}",
            "thread.name": "AnyIO worker thread",
        }
        for key, value in attributes.items():
            record.attributes.add(key=key).value.string_value = value
        record.attributes.add(key="http.response.status_code").value.int_value = 500
    return bytes(request.SerializeToString())


def _stack(number: int) -> str:
    """A traceback as such services have it: own code between that of a framework."""
    dice = random.Random(number)
    words = ("order", "cart", "price", "customer", "payment", "stock", "invoice", "mail", "lead", "session", "queue")
    lines = ["Traceback (most recent call last):"]
    for depth in range(FRAMES):
        one, two, three = (dice.choice(words) for _ in range(3))
        if depth % 3 == 2:
            file, function = f"/srv/shop/shop/{one}/{two}.py", f"{three}_{one}_{number}"
        else:
            file, function = f"/srv/shop/.venv/lib/python3.11/site-packages/starlette/{one}.py", f"_{two}_{depth}"
        lines.append(f'  File "{file}", line {dice.randrange(9, 990)}, in {function}')
        lines.append(f"    {three} = await self.{two}_{one}({dice.choice(words)}, {dice.choice(words)}={depth})")
    return "\n".join(lines)


# PostgreSQL


@contextmanager
def _durable_postgres() -> Iterator[PostgresServer]:
    from tests.postgres import PostgresServer  # not at the top: the server would load it, and pytest, too

    server = PostgresServer()
    try:
        server.stop()
        server.start(**DURABLE)
        yield server
    finally:
        server.close()


async def _counts(url: str) -> tuple[int, int]:
    """How many errors are counted, and how many rows there are."""
    connection = await asyncpg.connect(url)
    try:
        counted = await connection.fetchval("SELECT coalesce(sum(count), 0)::bigint FROM tocsin.error_groups")
        return counted, await connection.fetchval("SELECT count(*) FROM error_logs")
    finally:
        await connection.close()


async def _until(url: str, errors: int) -> float:
    """When so many are counted, on the clock of `time.monotonic`."""
    connection = await asyncpg.connect(url)
    deadline = time.monotonic() + 120
    try:
        query = "SELECT coalesce(sum(count), 0)::bigint FROM tocsin.error_groups"
        while await connection.fetchval(query) < errors:
            if time.monotonic() > deadline:
                sys.exit(f"only {await connection.fetchval(query)} of {errors} errors are stored")
            await asyncio.sleep(0.02)
        return time.monotonic()
    finally:
        await connection.close()


async def _copy(url: str) -> float:
    """Rows a second by `COPY` into a table beside and `INSERT … ON CONFLICT`, a batch in a transaction."""
    connection = await asyncpg.connect(url)
    rows = [tuple(row) for row in await connection.fetch("SELECT * FROM error_logs LIMIT 20000")]
    await connection.execute("TRUNCATE error_logs")
    await connection.execute("CREATE UNLOGGED TABLE beside (LIKE error_logs)")
    await connection.execute("CHECKPOINT")
    begun = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        async with connection.transaction():
            await connection.copy_records_to_table("beside", records=rows[start : start + BATCH])
            await connection.execute("INSERT INTO error_logs SELECT * FROM beside ON CONFLICT DO NOTHING")
            await connection.execute("DELETE FROM beside")
    seconds = time.perf_counter() - begun
    await connection.close()
    return len(rows) / seconds


def _backends(url: str) -> set[int]:
    """The processes of the server with this address: the one that listens on its port, and its children."""
    port = url.rpartition(":")[2].partition("/")[0]
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"port=" + port.encode() in words:
            found.add(int(folder.name))
    return found


def _cpu_of_children(parents: set[int]) -> float:
    """Seconds of CPU of some processes, with their children, those that ended too."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) in parents:
            total += int(fields[11]) + int(fields[12])
        if int(stat.parent.name) in parents:
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def _pss_mib(pid: int) -> float:
    """Of a process: its memory, what it shares counted in parts."""
    found = re.search(r"(?m)^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    return int(found[1]) / 1024 if found else math.nan


if __name__ == "__main__":
    main()
