"""`kill -9` of services and of the server that they send to, under load: what was captured is stored, exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reliability.test_kill import VICTIM, counts_in, deaths_in, ids_in
from tests.test_cli import closed_port
from tests.test_serve import Server
from tests.waiting import eventually
from tocsin.exporter.drain import Drain, adopting
from tocsin.settings import Settings
from tocsin.store import open_store

TOKEN = "token-for-sending"


class Services:
    """Services that fail in many ways, two of them alive at a time; each writes down what was captured."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._folder = folder
        self._program = folder / "victim.py"
        self._program.write_text(VICTIM)
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")} | {
            "TOCSIN_ENDPOINT": endpoint,
            "TOCSIN_INGEST_TOKEN": TOKEN,
            "TOCSIN_SPOOL_DIR": str(folder / "spool"),
        }
        self._alive: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def start(self) -> None:
        """Start one, and wait until it captures."""
        argv = [str(self._program), str(self._folder / f"log-{self.started}"), f"victim-{self.started}"]
        victim = subprocess.Popen(
            [sys.executable, *argv], env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._alive.append(victim)
        self.started += 1
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"ready\n"

    def kill_down_to(self, number: int) -> None:
        """Kill the oldest until so many are left."""
        while len(self._alive) > number:
            victim = self._alive.pop(0)
            victim.send_signal(signal.SIGKILL)
            victim.communicate()

    def captured(self, number: int) -> tuple[int, list[str]]:
        """How many captures a service has begun, and the ids that were returned."""
        lines = (self._folder / f"log-{number}").read_text().splitlines()
        return lines.count("begin"), [line.split()[1] for line in lines if line.startswith("end ")]


def kill_many_times(url: str, folder: Path, *, services: int, servers: int, seed: int) -> str:
    """Kill so many of each at random moments; what came of it, in words."""
    chance = random.Random(seed)
    port = closed_port()
    settings = {
        "TOCSIN_DATABASE_URL": url,
        "TOCSIN_SPOOL_DIR": str(folder / "server"),
        "TOCSIN_TOKEN": "full-token",
        "TOCSIN_INGEST_TOKEN": TOKEN,
        "TOCSIN_ALERT_ENVIRONMENTS": "none",
    }
    server = Server(folder, port=port, is_fresh=False, **settings)
    when = {round((number + 0.5) * services / servers) for number in range(servers)}
    killed = 0
    victims = Services(folder, f"http://127.0.0.1:{port}")
    try:
        server.until_ready()  # before the services take all of the machine
        for number in range(services):
            victims.start()
            if number in when:
                server.until_ready()
                time.sleep(chance.uniform(0.0, 1.0))
                server.process.kill()
                server.process.wait()
                killed += 1
                server = Server(folder, port=port, is_fresh=False, **settings)
            time.sleep(chance.uniform(0.0, 1.0))  # the moment is what is tried, not what is waited for
            victims.kill_down_to(1)
        victims.kill_down_to(0)

        send_the_rest(folder, f"http://127.0.0.1:{port}")
        server.process.terminate()
        server.process.wait(20)
    finally:
        victims.kill_down_to(0)
        server.process.kill()
        server.process.wait()
    with adopting(Settings(database_url=url, spool_dir=str(folder / "server"))):
        eventually(lambda: not list((folder / "server").glob("*.seg")), 60)
    return compare(url, victims, killed)


def send_the_rest(folder: Path, endpoint: str) -> None:
    """What the killed services left goes the same way, by whoever comes next."""
    spool = folder / "spool"
    drain = Drain(Settings(endpoint=endpoint, ingest_token=TOKEN, spool_dir=str(spool)), None, spool)
    drain.start()
    eventually(lambda: not list(spool.glob("*.seg")), 120)
    drain.finish(5)
    assert not list(spool.glob("*.sent"))
    assert not (spool / "refused.jsonl").exists()


def compare(url: str, victims: Services, killed: int) -> str:
    store = open_store(url)
    by_service, stored = store.read_now(counts_in), store.read_now(ids_in)
    deaths = store.read_now(deaths_in)
    store.close_now()
    total = 0
    for number in range(victims.started):
        begun, returned = victims.captured(number)
        assert deaths[f"victim-{number}"] == 1
        count = by_service[f"victim-{number}"] - 1
        # A capture may have been finished and not yet written to the test's own log: one for each thread.
        assert len(returned) <= count <= begun, f"service {number}: {len(returned)} returned, {count} stored"
        missing = set(returned) - stored
        assert not missing, f"service {number}: {len(missing)} ids are not in the table"
        total += len(returned)
    assert total > 1000 * victims.started  # it was a storm, or nothing was tried
    return (
        f"{victims.started} services and {killed} servers killed: {total} captures had returned,"
        f" {sum(by_service.values())} are stored, {len(stored)} of them in full, none missing, none twice"
    )


def test_what_was_captured_survives_kills_on_both_ends(sqlite_url: str, tmp_path: Path) -> None:
    kill_many_times(sqlite_url, tmp_path, services=3, servers=1, seed=1)


@pytest.mark.gate
def test_what_was_captured_survives_a_hundred_kills_of_services_and_twenty_of_servers(
    database_url: str, tmp_path: Path
) -> None:
    """Prints its counts; `-rP` shows them."""
    print(kill_many_times(database_url, tmp_path, services=100, servers=20, seed=100))
