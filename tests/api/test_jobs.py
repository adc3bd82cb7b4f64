"""Failed jobs by HTTP: seen by who may read, dealt with by who may act, and never run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.api.conftest import TOKENS, client_of
from tests.failed_jobs import failed_job
from tocsin import clock, ids
from tocsin.model import Batch, Job
from tocsin.store import Store, errors, jobs

API = "/api/debug"


async def put(store: Store, *told: Job) -> None:
    await store.write(errors.write_batch, Batch(entries=[], facts=[*told]), clock.now())


async def test_jobs_are_listed_as_they_are_kept(client: httpx.AsyncClient, store: Store) -> None:
    job = failed_job(arguments={"args": ["7"], "kwargs": {"token": "***"}}, changed=["kwargs.token"])
    await put(store, job)

    listed = (await client.get(f"{API}/jobs")).json()

    assert (listed["success"], listed["count"], listed["next"]) == (True, 1, None)
    (row,) = listed["jobs"]
    assert (row["number"], row["status"], row["id"], row["group"]) == (1, "failed", job.id, None)
    assert (row["function"], row["folder"], row["tries"]) == ("shop.leads:push", "/srv/shop", 2)
    assert (row["arguments"], row["changed"]) == (job.arguments, ["kwargs.token"])
    assert [attempt["type"] for attempt in row["attempts"]] == ["TimeoutError", "TimeoutError"]
    assert row["failed_at"] == "2026-03-14T09:26:53.589Z"


async def test_pages_of_jobs_join(client: httpx.AsyncClient, store: Store) -> None:
    await put(store, *(failed_job() for _ in range(5)))

    first = (await client.get(f"{API}/jobs", params={"limit": 3})).json()
    second = (await client.get(f"{API}/jobs", params={"limit": 3, "before": first["next"]})).json()

    assert [row["number"] for row in first["jobs"] + second["jobs"]] == [5, 4, 3, 2, 1]
    assert second["next"] is None


async def test_jobs_can_be_filtered(client: httpx.AsyncClient, store: Store) -> None:
    """Filters left empty do not filter."""
    await put(store, failed_job(), failed_job(service="crm", environment="staging", function="crm:sync"))
    await client.post(f"{API}/jobs/2/done")

    async def numbers(query: str) -> list[int]:
        return [row["number"] for row in (await client.get(f"{API}/jobs?{query}")).json()["jobs"]]

    assert await numbers("") == await numbers("status=&service=&environment=&q=&limit=&before=") == [1]
    assert await numbers("status=all") == [2, 1]
    assert await numbers("status=done&service=crm&environment=staging&q=SYNC") == [2]
    assert await numbers("status=discarded") == []


@pytest.mark.parametrize(
    ("query", "field"), [("status=lost", "status"), ("limit=0", "limit"), ("before=AAAA", "before"), ("q=%00", "q")]
)
async def test_a_wrong_value_is_named(client: httpx.AsyncClient, query: str, field: str) -> None:
    answer = await client.get(f"{API}/jobs?{query}")

    assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (400, field)


async def test_a_job_with_its_history_by_number_and_by_id(client: httpx.AsyncClient, store: Store) -> None:
    """Who dealt with it, by which way, and when."""
    job = failed_job()
    await put(store, job)

    done = await client.post(f"{API}/jobs/1/done")
    again = await client.post(f"{API}/jobs/{job.id}/done")

    assert (done.status_code, done.json()["message"]) == (200, "job 1 is done")
    assert (again.status_code, again.json()["message"]) == (200, "job 1 was done before")
    shown = (await client.get(f"{API}/jobs/1")).json()
    assert shown == (await client.get(f"{API}/jobs/{job.id.upper()}")).json()
    assert (shown["job"]["status"], shown["job"]["acted_by"]) == ("done", "token: full")
    assert [(act["action"], act["via"], act["detail"]) for act in shown["history"]] == [
        ("done", "api", "it was so already"),
        ("done", "api", None),
    ]


async def test_what_makes_no_sense_is_a_conflict(client: httpx.AsyncClient, store: Store) -> None:
    await put(store, failed_job())
    await client.post(f"{API}/jobs/1/discard")

    answer = await client.post(f"{API}/jobs/1/done")

    assert (answer.status_code, answer.json()["error"]) == (409, "a job that is discarded cannot take done")


WRONG = [
    "0",
    "9",
    "-1",
    "1.5",
    "x",
    "99999999999999999999",
    "0" * 5000,
    "%C2%B2",
    "0190d0c0-0000-7000-8000-000000000000",
]


@pytest.mark.parametrize("name", WRONG)
async def test_a_job_that_is_not_there(client: httpx.AsyncClient, store: Store, name: str) -> None:
    await put(store, failed_job())

    for answer in (
        await client.get(f"{API}/jobs/{name}"),
        await client.post(f"{API}/jobs/{name}/done"),
        await client.post(f"{API}/jobs/{name}/retry"),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"].startswith("there is no job ")


async def test_a_server_runs_nothing_that_a_row_names(
    client: httpx.AsyncClient, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may send errors could write such a row; it says where the job can be run instead."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef run(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    file = str(tmp_path / "evil_module.py")
    await put(
        store, failed_job(function="evil_module:run"), failed_job(function="__main__:run", file=file, folder=None)
    )

    answers = [await client.post(f"{API}/jobs/{number}/retry") for number in (1, 2)]

    assert [answer.status_code for answer in answers] == [409, 409]
    assert "`tocsin jobs retry 1` in /srv/shop" in answers[0].json()["error"]
    assert "`tocsin jobs retry 2` in the folder of shop" in answers[1].json()["error"]
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "ran").exists()
    assert (await store.read(jobs.by_number, 1)).status == "failed"


@pytest.mark.parametrize("action", ["done", "discard", "retry"])
async def test_who_may_only_read_does_not_act(app: Starlette, store: Store, action: str) -> None:
    """And who may only send errors sees nothing."""
    await put(store, failed_job())
    statuses: dict[str, list[Any]] = {}
    for name in ("read", "ingest"):
        async with client_of(app, token=TOKENS[name]) as client:
            calls = [client.get(f"{API}/jobs"), client.get(f"{API}/jobs/1"), client.post(f"{API}/jobs/1/{action}")]
            statuses[name] = [(await call).status_code for call in calls]

    assert statuses == {"read": [200, 200, 403], "ingest": [403, 403, 403]}
    assert (await store.read(jobs.by_number, 1)).status == "failed"


async def test_the_queue_tells_how_many_jobs_wait(client: httpx.AsyncClient, store: Store) -> None:
    await put(store, *(failed_job(id=ids.uuid7()) for _ in range(3)))
    await client.post(f"{API}/jobs/2/discard")

    assert (await client.get(f"{API}/queue")).json()["jobs"] == {"failed": 2}
