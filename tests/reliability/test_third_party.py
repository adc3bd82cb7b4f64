"""A third party that takes calls and never answers: what a service tells of it, and what it costs its own callers."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.conftest import mostly
from tests.failed_jobs import jobs_in
from tests.processes import Service, rows_of, run_command
from tests.standin.third_party import ThirdParty
from tests.waiting import eventually

TRIES, TIMEOUT_S, PAUSE_S = 3, 0.5, 0.05
# Whoever waits for a service on a busy machine waits for the machine, too.
SLACK_S = 3.0

# Not one of its clients has a time-out of its own.
SHOP = """
import os, urllib.request
import httpx, requests, tocsin
from fastapi import FastAPI
from fastapi.responses import JSONResponse

THIRD_PARTY = os.environ["THIRD_PARTY"]
app = FastAPI()
guarded = tocsin.protect(category="amocrm", severity="high", retries=3, timeout_s=0.5, pause_s=0.05)

@guarded
async def by_httpx(lead: str, token: str = "") -> str:
    async with httpx.AsyncClient(timeout=None) as client:
        return (await client.post(f"{THIRD_PARTY}/httpx/{lead}")).text

@guarded
def by_urllib(lead: str) -> str:
    with urllib.request.urlopen(f"{THIRD_PARTY}/urllib/{lead}", data=b"{}") as answer:
        return answer.read().decode()

@guarded
def by_requests(lead: str) -> str:
    return requests.post(f"{THIRD_PARTY}/requests/{lead}", timeout=None).text

@app.get("/httpx/{lead}")
async def push(lead: str):
    try:
        return await by_httpx(lead)
    except TimeoutError:
        return JSONResponse("later", 504)

@app.get("/{way}/{lead}")
def push_in_thread(way: str, lead: str):
    try:
        return {"urllib": by_urllib, "requests": by_requests}[way](lead)
    except TimeoutError:
        return JSONResponse("later", 504)

@app.get("/ping")
async def ping():
    return "pong"
"""


class Asked:
    """A request in a thread: what it is answered, and how long that takes."""

    def __init__(self, service: Service, path: str) -> None:
        self.status = 0
        self.took_s = 0.0
        self._thread = threading.Thread(target=self._ask, args=(service, path))
        self._thread.start()

    def _ask(self, service: Service, path: str) -> None:
        began = time.monotonic()
        self.status = service.get(path)
        self.took_s = time.monotonic() - began

    @property
    def is_waiting(self) -> bool:
        return self._thread.is_alive()


WAYS = {"httpx": "by_httpx", "urllib": "by_urllib", "requests": "by_requests"}


@mostly("postgresql")
def test_a_third_party_that_hangs(tmp_path: Path, database_url: str) -> None:
    """
    Three tries, one error with all three in it, one job; whoever waits, waits no longer than the time-outs.

    Meanwhile the loop answers others. When the third party answers again, the job is done by hand.
    """
    (tmp_path / "shop.py").write_text(SHOP)
    with ThirdParty() as party:
        fail(party, tmp_path, database_url)
        jobs = tell_of_it(tmp_path, database_url)
        party.answers = True
        party.calls.clear()
        command = (sys.executable, "-m", "tocsin", "jobs", "retry", str(jobs["shop:by_httpx"].number), "--yes")

        done = run_command(tmp_path, command, database_url, THIRD_PARTY=party.url)

        assert done.returncode == 0, done.stdout + done.stderr
        assert party.calls == ["/httpx/7"]

    assert {job.function: job.status for job in jobs_in(database_url)} == {
        "shop:by_httpx": "done", "shop:by_urllib": "failed", "shop:by_requests": "failed",
    }  # fmt: skip
    assert len(rows_of(database_url)) == len(WAYS)


def fail(party: ThirdParty, folder: Path, database_url: str) -> None:
    """A service fails in all ways at once."""
    argv = (sys.executable, "-m", "uvicorn", "shop:app", "--port", "0")
    with Service(folder, database_url, *argv, THIRD_PARTY=party.url) as service:
        waiting = {way: Asked(service, f"/{way}/7") for way in WAYS}
        answered = 0
        while any(one.is_waiting for one in waiting.values()):
            assert service.get("/ping") == 200
            answered += 1

        assert {way: one.status for way, one in waiting.items()} == dict.fromkeys(WAYS, 504)
        assert max(one.took_s for one in waiting.values()) < TRIES * TIMEOUT_S + 3 * PAUSE_S + SLACK_S
        assert answered >= 5
        assert sorted(party.calls) == sorted(f"/{way}/7" for way in WAYS for _ in range(TRIES))
        eventually(lambda: len(jobs_in(database_url)) == len(WAYS))
        assert service.stop() in (0, 130), service.said()


def tell_of_it(folder: Path, database_url: str) -> dict[str, Any]:
    """What is stored of that; the jobs by the paths of their functions."""
    rows = {row.message.partition(" ")[0]: row for row in rows_of(database_url)}
    jobs = {job.function: job for job in jobs_in(database_url)}
    assert sorted(rows) == sorted(WAYS.values())
    assert sorted(jobs) == sorted(f"shop:{name}" for name in WAYS.values())
    for way, name in WAYS.items():
        row, job = rows[name], jobs[f"shop:{name}"]
        said = f"{name} took longer than its 0.5 s"
        assert (row.exception_type, row.message, row.category, row.count) == ("TimeoutError", said, "amocrm", 1)
        assert [(one["type"], one["message"]) for one in row.context["attempts"]] == [("TimeoutError", said)] * TRIES
        assert all(one["ms"] >= 1000 * TIMEOUT_S * 0.9 for one in row.context["attempts"])
        assert f"{way}" in row.stack, "it says where it hung"
        assert (job.error_id, job.tries, job.attempts) == (row.id, TRIES, row.context["attempts"])
        assert (job.arguments, job.changed, job.status) == ({"args": ["7"], "kwargs": {}}, [], "failed")
        assert (job.folder, job.file) == (str(folder), str(folder / "shop.py"))
    return jobs


def test_a_service_that_stops_leaves_the_job(tmp_path: Path, sqlite_url: str) -> None:
    """Whoever has just failed for the first time is not tried again while the server stops."""
    (tmp_path / "shop.py").write_text(SHOP.replace("pause_s=0.05", "pause_s=1000"))
    argv = (sys.executable, "-m", "uvicorn", "shop:app", "--port", "0")
    with ThirdParty() as party, Service(tmp_path, sqlite_url, *argv, THIRD_PARTY=party.url) as service:
        waiting = [Asked(service, f"/{way}/7") for way in WAYS]
        eventually(lambda: len(party.calls) == len(WAYS))
        service.stop()
        eventually(lambda: not any(one.is_waiting for one in waiting))

        assert [one.status for one in waiting] == [504] * 3
        assert len(party.calls) == len(WAYS)

    assert [job.tries for job in jobs_in(sqlite_url)] == [1, 1, 1]
    assert len(rows_of(sqlite_url)) == 3
