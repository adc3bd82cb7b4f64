"""The demo keeps its promises: it tells the story, what it prints works, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import eventually

ROOT = Path(__file__).parents[1]


class Playing:
    """A demo under way, and all that it said."""

    def __init__(self, folder: Path, *argv: str, **environ: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))}
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tocsin", "demo", *argv],
            cwd=folder,
            env=kept | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "HOME": str(folder)} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.said += line

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def end(self) -> int:
        code = self.process.wait(90)
        self._reader.join(10)
        return code

    def wait_for(self, part: str, timeout_s: float = 60) -> None:
        eventually(lambda: part in self.said or self.process.poll() is not None, timeout_s)
        assert part in self.said, self.said


Start = Callable[..., Playing]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Start]:
    """Starts demos, and ends those that a test has left."""
    started: list[Playing] = []

    def start(*argv: str, **environ: str) -> Playing:
        started.append(Playing(tmp_path, *argv, **environ))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGINT)
        one.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_story_is_told_and_what_it_prints_works(demo: Start) -> None:
    """Error, group, alert, resolve, regression; then the printed addresses and calls, as a person would use them."""
    playing = demo("--port", str(port := free_port()))
    playing.wait_for("Everything stays up until Ctrl-C")
    said = playing.said

    story = [
        "HIGH api #1 KeyError: 'phone'",
        "HIGH #1 new",
        "#1 KeyError: 'phone': status open",
        "HIGH amocrm #2 ReadTimeout",
        "HIGH network #3 ConnectionRefusedError",
        "ValueError: a receipt needs at least one line",
        "OutOfStockError: tea: -3 in stock",
        "KeyError: 'coffee'",
        "Errors stored before: 6; after: 6.",
        "count 300",
        "#1 ✅ resolved",
        "status resolved",
        "#1 regressed: back after it was resolved",
        "count 2",
    ]
    places = [said.find(part) for part in story]
    assert -1 not in places, (story[places.index(-1)], said)
    assert places == sorted(places)

    curls = re.findall(r"^  (curl .*)$", said, re.MULTILINE)
    assert len(curls) == 8
    for line in curls[:4]:
        assert f"127.0.0.1:{port}/" in line
        assert '"success":true' in asked(line)

    *_, address = re.findall(r"http://\S+/login\?code=\S+", said)
    with urllib.request.urlopen(address, timeout=10) as page:
        assert (page.status, page.headers.get_content_type()) == (200, "text/html")


def asked(curl: str) -> str:
    """What a printed call answers; read as the shell would, without needing curl."""
    words = shlex.split(curl)
    request = urllib.request.Request(words[-1], method="POST" if "POST" in words else "GET")
    name, value = words[words.index("-H") + 1].split(": ", 1)
    request.add_header(name, value)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_short_demo_tells_error_and_alert_and_ends_by_itself(demo: Start, tmp_path: Path) -> None:
    """
    With exit code 0, and nothing of its own is left on the disk.

    Nothing of the user's own is touched: neither their database and spool, nor the settings that would lead there.
    """
    (tmp_path / ".env").write_text("TOCSIN_DATABASE_URL=sqlite:////nowhere/of.db\n")
    own = {
        "TOCSIN_DATABASE_URL": f"sqlite:///{tmp_path}/own.db",
        "TOCSIN_SPOOL_DIR": f"{tmp_path}/own-spool",
        "TOCSIN_BOGUS": "1",
    }

    playing = demo("--seconds", "5", **own)

    assert playing.end() == 0, playing.said
    assert "HIGH api #1 KeyError: 'phone'" in playing.said
    assert "HIGH #1 new" in playing.said
    assert list(playing.temporary.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} <= {".env", "tmp"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_both_its_processes(number: signal.Signals, demo: Start) -> None:
    """Whenever it comes: here as early as there is something to leave behind."""
    playing = demo()
    children = eventually(lambda: len(found := playing.children()) >= 2 and found, 30)
    assert children

    playing.process.send_signal(number)

    assert playing.end() == 0, playing.said
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert list(playing.temporary.iterdir()) == []
    assert "Traceback" not in playing.said


def test_a_port_that_is_taken_is_said(demo: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        playing = demo("--port", str(taken.getsockname()[1]))

        assert playing.end() == 1
    assert "cannot be used" in playing.said
    assert "--port" in playing.said
