"""Celery and RQ with a real Redis, and nothing of tocsin in the code of their jobs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery  # type: ignore[import-untyped]
from rq import Queue, Retry, SimpleWorker, SpawnWorker, Worker

from tests.interop import rq_shop
from tests.interop.servers import Program, told
from tests.processes import ROOT, rows_of
from tests.redis import redis_server
from tests.waiting import eventually

ENDS_S = 40

CELERY = "worker --without-mingle --without-gossip --without-heartbeat -l INFO"


@pytest.fixture
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


class CeleryWorker(Program):
    """A worker of Celery, who sends it tasks, and what became of them."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        redis_url: str,
        options: str,
        *,
        module: str = "tests.interop.celery_shop",
        **how: Any,
    ) -> None:
        environ = {"REDIS_URL": redis_url, "PYTHONPATH": f"{ROOT}:{folder}"}
        super().__init__(folder, database_url, f"celery -A {module} {CELERY} {options}", environ=environ, **how)
        self._client = Celery("client", broker=redis_url)
        self._redis = redis.from_url(redis_url)

    def is_ready(self) -> bool:
        return super().is_ready() and " ready." in self.said()

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        self._redis.close()
        self._client.close()

    def send(self, name: str, *args: Any, **kwargs: Any) -> str:
        return str(self._client.send_task(f"tests.interop.celery_shop.{name}", args, kwargs).id)

    def end_of(self, task_id: str) -> Any:
        """What a task comes to, when it is over: what it returns, or what Celery keeps of its exception."""

        def found() -> Any:
            kept = json.loads(self._redis.get(f"celery-task-meta-{task_id}") or "{}")
            return kept if kept.get("status") in ("SUCCESS", "FAILURE") else None

        return eventually(found, ENDS_S)["result"]

    def run(self, name: str, *args: Any) -> Any:
        return self.end_of(self.send(name, *args))


def send_all(worker: CeleryWorker) -> None:
    """Tasks of every kind, and a last one that fails right before the worker is told to end."""
    worker.send("ignored")
    worker.send("rejected")
    sent = [
        *(worker.send("fail", 7, password="geheim77"), worker.send("odd"), worker.send("logs")),
        *(worker.send("again", True), worker.send("again", False), worker.send("expected")),
    ]
    for one in sent:
        worker.end_of(one)
    worker.run("last")


TOLD = {
    ("LookupError", "celery", "high"): 1,
    ("tests.interop.celery_shop.Odd", "celery", "high"): 1,
    ("short of tea", "logging", "high"): 1,
    ("ConnectionError", "celery", "high"): 1,
    ("TypeError", "celery", "high"): 1,
}
"""Neither the retries that were not the last, nor what is ignored, rejected or expected; nor Celery's own lines."""


def check_contexts(database_url: str) -> None:
    rows = {row.exception_type or row.message: row for row in rows_of(database_url)}
    context = rows["LookupError"].context
    assert context["celery.task_name"] == "tests.interop.celery_shop.fail"
    assert (context["celery.args"], context["celery.kwargs"]) == ([7], {"password": "[scrubbed]"})
    assert rows["ConnectionError"].context["celery.retries"] == 2
    line = rows["short of tea"].context
    assert line["celery.task_name"] == "tests.interop.celery_shop.logs"
    assert len({row.context["celery.task_id"] for row in rows.values()}) == len(rows)
    assert all(row.handled is (row.mechanism == "logging") for row in rows.values())


def test_processes_of_celery(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    """Tasks in a pool of two, one of which is killed with its task; the last error is stored though it ends at once."""
    with CeleryWorker(tmp_path, sqlite_url, redis_url, "-c 2") as worker:
        send_all(worker)
        worker.run("killed")

        assert worker.end() == 0

        expected = {**TOLD, ("billiard.exceptions.WorkerLostError", "celery", "critical"): 1}
        assert told(sqlite_url) == expected, worker.said()
        check_contexts(sqlite_url)
        lost = next(row for row in rows_of(sqlite_url) if row.severity == "critical")
        assert lost.context["celery.task_name"] == "tests.interop.celery_shop.killed"
        assert (lost.category, lost.handled) == ("queue", False)


@pytest.mark.gate
@pytest.mark.parametrize("options", ["-P solo", "-P threads -c 2", "-c 1 --max-tasks-per-child 1"])
def test_pools_of_celery(options: str, sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    with CeleryWorker(tmp_path, sqlite_url, redis_url, options) as worker:
        send_all(worker)

        assert worker.end() == 0

        assert told(sqlite_url) == TOLD, worker.said()
        check_contexts(sqlite_url)


@pytest.mark.gate
def test_processes_of_celery_that_end_in_other_ways(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    """By the exit of a task, by its time limit, and killed while they had none; the pool goes on each time."""
    with CeleryWorker(tmp_path, sqlite_url, redis_url, "-c 1") as worker:
        worker.run("exits")
        worker.run("slow")
        idle = worker.run("pid")
        os.kill(idle, signal.SIGKILL)
        assert eventually(lambda: worker.run("pid"), ENDS_S) != idle

        assert worker.end() == 0

        assert told(sqlite_url) == {
            ("billiard.exceptions.WorkerLostError", "celery", "critical"): 1,
            ("billiard.exceptions.TimeLimitExceeded", "celery", "high"): 1,
            ("a pool process of Celery was lost: SIGKILL", "celery", "critical"): 1,
        }, worker.said()


def test_work_horses_of_rq(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    """Jobs that fail, are tried again, are killed or leave without a word."""
    check_rq(sqlite_url, redis_url, tmp_path, Worker)


@pytest.mark.gate
@pytest.mark.parametrize("kind", [SimpleWorker, SpawnWorker])
def test_other_workers_of_rq(kind: type[Any], sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    check_rq(sqlite_url, redis_url, tmp_path, kind)


@pytest.mark.gate
def test_tocsin_in_the_module_of_the_jobs(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    """RQ imports it in each work horse, in the middle of the job."""
    (tmp_path / "own_jobs.py").write_text(
        "import tocsin\ntocsin.init(service='shop')\nfrom tests.interop.rq_shop import fail\n"
    )
    command = f"rq.cli worker --url {redis_url} high"
    with (
        Program(tmp_path, sqlite_url, command, run=("-m",), environ={"PYTHONPATH": f"{ROOT}:{tmp_path}"}) as worker,
        redis.from_url(redis_url) as connection,
    ):
        job = Queue("high", connection=connection).enqueue("own_jobs.fail", 7)
        eventually(lambda: job.get_status() == "failed", ENDS_S)

        assert worker.end() == 0

    assert told(sqlite_url) == {("LookupError", "rq", "high"): 1}, worker.said()
    (row,) = rows_of(sqlite_url)
    assert row.context["rq.job_id"] == job.id


@pytest.mark.gate
def test_tocsin_in_the_module_of_the_tasks(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "own_tasks.py").write_text(
        "import tocsin\nfrom tests.interop.celery_shop import app\ntocsin.init(service='shop')\n"
    )
    with CeleryWorker(tmp_path, sqlite_url, redis_url, "-c 1", module="own_tasks", run=("-m",)) as worker:
        send_all(worker)
        worker.run("killed")

        assert worker.end() == 0

        expected = {**TOLD, ("billiard.exceptions.WorkerLostError", "celery", "critical"): 1}
        assert told(sqlite_url) == expected, worker.said()


def check_rq(database_url: str, redis_url: str, folder: Path, kind: type[Any]) -> None:
    command = f"rq worker -w rq.worker.{kind.__name__} --url {redis_url} high"
    has_horses = kind is not SimpleWorker
    with Program(folder, database_url, command) as worker, redis.from_url(redis_url) as connection:
        queue = Queue("high", connection=connection)
        jobs = [
            queue.enqueue(rq_shop.fail, 7, password="geheim77"),
            queue.enqueue(rq_shop.again, retry=Retry(max=1)),
            queue.enqueue(rq_shop.asks_again),
            queue.enqueue(rq_shop.logs),
            *([queue.enqueue(rq_shop.killed), queue.enqueue(rq_shop.leaves)] if has_horses else []),
            queue.enqueue(rq_shop.last),
        ]
        eventually(lambda: all(job.get_status() in ("finished", "failed") for job in jobs), ENDS_S)

        assert worker.end() == 0

    shop = "tests.interop.rq_shop"
    lost = [f"the work horse of RQ was lost in {shop}.{how}" for how in ("killed: SIGKILL", "leaves: exit code 7")]
    assert told(database_url) == {
        ("LookupError", "rq", "high"): 1,
        ("ConnectionError", "rq", "high"): 1,
        (f"{shop}.asks_again was given up after 1 retry", "rq", "high"): 1,
        ("short of tea", "logging", "high"): 1,
        ("TypeError", "rq", "high"): 1,
        **({(text, "rq", "critical"): 1 for text in lost} if has_horses else {}),
    }, worker.said()
    rows = rows_of(database_url)
    context = next(row for row in rows if row.exception_type == "LookupError").context
    assert (context["rq.function"], context["rq.queue"], context["rq.job_id"]) == (f"{shop}.fail", "high", jobs[0].id)
    assert context["rq.kwargs"] == {"password": "[scrubbed]"}
    assert {row.context["rq.job_id"] for row in rows} == {job.id for job in jobs}
