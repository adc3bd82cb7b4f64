"""Failed jobs: they come in once, people deal with them, and there are never too many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from tests.conftest import ErrorFactory
from tests.failed_jobs import FAILED_AT, failed_job
from tocsin import ids, lifecycle
from tocsin.failures import BadInput, NotFound
from tocsin.lifecycle import IllegalTransition, JobStatus, JobTrigger
from tocsin.model import Batch, Beat, Fact, Job
from tocsin.store import Store, audit, errors, facts, jobs, schema
from tocsin.store.jobs import KeptJob
from tocsin.store.retention import Policy, Run, Task, count

NOW = FAILED_AT + timedelta(minutes=5)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
BY_PEOPLE = (JobTrigger.DONE, JobTrigger.DISCARD)
ANNA = {"by": "cli: anna", "runner": "shop-1, process 17", "via": "cli"}
BORIS = {"by": "cli: boris", "runner": "shop-2, process 17", "via": "cli"}


async def put(store: Store, *told: Fact) -> None:
    await store.write(errors.write_batch, Batch(entries=[], facts=[*told]), NOW)


async def listed(store: Store, **filters: Any) -> list[int]:
    found, _ = await store.read(jobs.list_jobs, **filters)
    return [job.number for job in found]


async def one(store: Store, number: int = 1) -> KeptJob:
    return await store.read(jobs.by_number, number)


async def act(store: Store, trigger: JobTrigger, number: int = 1) -> jobs.Acted:
    return await store.write(jobs.act, number, trigger, by="@anna", via="telegram", now=NOW)


async def begin(store: Store, who: dict[str, str] = ANNA, number: int = 1, after: timedelta = MINUTE) -> KeptJob:
    return await store.write(jobs.begin_retry, number, **who, now=NOW + after)


async def end(store: Store, who: dict[str, str] = ANNA, *, is_done: bool = True, outcome: str = "0.1 s") -> jobs.Acted:
    return await store.write(jobs.end_retry, 1, **who, is_done=is_done, outcome=outcome, now=NOW + 2 * MINUTE)


async def bring_to(store: Store, status: JobStatus) -> None:
    await put(store, failed_job())
    if status is JobStatus.RUNNING:
        await begin(store, after=timedelta())
    elif status is not JobStatus.FAILED:
        await act(store, {JobStatus.DONE: JobTrigger.DONE, JobStatus.DISCARDED: JobTrigger.DISCARD}[status])


# They come in


async def test_a_job_comes_in_once_with_a_number_of_its_own(store: Store) -> None:
    """A segment that is read twice changes nothing, and wastes no number."""
    first, second = failed_job(message="one"), failed_job(message="two")

    await put(store, first)
    await act(store, JobTrigger.DONE)
    await put(store, first, second)

    assert [(job.number, job.message, job.status) for job in [await one(store, 1), await one(store, 2)]] == [
        (1, "one", JobStatus.DONE),
        (2, "two", JobStatus.FAILED),
    ]


async def test_a_job_is_kept_as_it_was_told(store: Store, error: ErrorFactory) -> None:
    """With the number of the group that its error belongs to."""
    failed = error()
    job = failed_job(error_id=failed.id, changed=["kwargs.token"])
    await store.write(errors.write_batch, Batch(entries=[failed], facts=[job]), NOW)

    kept = await one(store)

    assert {name: getattr(kept, name) for name in Job.__slots__} == {name: getattr(job, name) for name in Job.__slots__}
    assert (kept.group, kept.acted_at, kept.acted_by, kept.outcome) == (1, None, None, None)


async def test_a_job_is_found_by_its_id_too(store: Store) -> None:
    job = failed_job()
    await put(store, job)

    assert await store.read(jobs.number_of, job.id.upper()) == 1
    for wrong in (ids.uuid7(), "7", "x", "\0", "x" * 5000):
        with pytest.raises(NotFound, match="there is no job"):
            await store.read(jobs.number_of, wrong)
    for number in (0, 2, -1, 2**31, 2**80):
        with pytest.raises(NotFound):
            await store.read(jobs.by_number, number)


async def test_two_writers_with_the_same_facts_in_another_order_do_not_lock_each_other_out(store: Store) -> None:
    """Each would hold what the other waits for, and one would be sent away."""
    told: list[Fact] = [failed_job() for _ in range(20)]
    told += [
        Beat(name=f"nightly {n}", timestamp=NOW, environment="production", every_s=60.0, is_ok=True) for n in range(20)
    ]

    for _ in range(5):
        some = [failed_job() for _ in range(3)]
        await asyncio.gather(
            put(store, *told, *some), put(store, *reversed(told)), put(store, *told[10:], *told[:10], some[2])
        )

    assert len(await listed(store, limit=500)) == 35


def test_what_is_told_of_one_beat_stays_in_order() -> None:
    """Only what nobody can tell apart moves."""
    early, late = (
        Beat(name="nightly", timestamp=NOW + after, environment="production") for after in (timedelta(), MINUTE)
    )

    assert facts.in_order([late, failed_job(), early])[1:] == [late, early]


# They are listed


async def test_what_waits_is_listed_last_failed_first(store: Store) -> None:
    """Also what is being run; the rest when it is asked for."""
    await put(store, *(failed_job(failed_at=FAILED_AT + at * MINUTE) for at in (2, 1, 3, 0)))
    await begin(store, number=1)
    await act(store, JobTrigger.DONE, 2)
    await act(store, JobTrigger.DISCARD, 3)

    assert await listed(store) == [1, 4]
    assert await listed(store, statuses=tuple(JobStatus)) == [3, 1, 2, 4]
    assert await listed(store, statuses=[JobStatus.DONE]) == [2]
    assert await store.read(jobs.count_failed) == 2


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"service": "crm"}, [2]),
        ({"environment": "staging"}, [2]),
        ({"q": "LEADS"}, [1]),
        ({"q": "timeout"}, [1]),
        ({"q": "50%"}, [2]),
        ({"q": "5_%"}, []),
        ({"service": "shop", "q": "away"}, []),
    ],
)
async def test_jobs_can_be_filtered(store: Store, filters: dict[str, Any], expected: list[int]) -> None:
    other = {"service": "crm", "environment": "staging", "exception_type": "OSError", "message": "50% away"}
    await put(store, failed_job(), failed_job(function="shop.sync:run", **other))

    assert await listed(store, **filters) == expected


async def test_pages_join(store: Store) -> None:
    """Where many failed in the same moment too, and while others arrive."""
    await put(store, *(failed_job() for _ in range(5)))

    first, following = await store.read(jobs.list_jobs, limit=2)
    await put(store, failed_job(failed_at=NOW))
    second, last = await store.read(jobs.list_jobs, limit=3, before=following)

    assert [job.number for job in first + second] == [5, 4, 3, 2, 1]
    assert last is None
    for wrong in ("AAAA", following and following[:-2]):
        with pytest.raises(BadInput):
            await store.read(jobs.list_jobs, before=wrong)


async def test_a_row_that_somebody_else_has_written_does_not_spoil_the_list(store: Store) -> None:
    """A status of their own, no number: such a row is nobody's."""
    await put(store, failed_job())

    def write(connection: Connection) -> None:
        for values in ({"status": "odd", "number": 7}, {"status": "failed", "number": None}):
            row = {name: getattr(failed_job(), name) for name in Job.__slots__}
            connection.execute(insert(schema.jobs).values(**row | values))

    await store.write(write)

    assert await listed(store, statuses=tuple(JobStatus)) == [1]


# What people do to them


@pytest.mark.parametrize("trigger", BY_PEOPLE)
@pytest.mark.parametrize("status", JobStatus)
async def test_an_act_does_what_the_table_says(store: Store, status: JobStatus, trigger: JobTrigger) -> None:
    """Every cell, through SQL; what is not allowed changes nothing."""
    await bring_to(store, status)
    before = await one(store)
    try:
        expected = lifecycle.advance_job(status, trigger)
    except IllegalTransition:
        with pytest.raises(IllegalTransition, match=f"a job that is {status} cannot take {trigger}"):
            await act(store, trigger)
        assert await one(store) == before
        return

    acted = await act(store, trigger)

    assert (acted.before, acted.changed) == (status, expected != status)
    assert acted.job == await one(store)
    assert acted.job.status == expected
    if acted.changed:
        assert (acted.job.acted_by, acted.job.acted_at) == ("@anna", NOW)
    newest = (await store.read(audit.of_target, "job 1"))[0]
    assert (newest.action, newest.actor, newest.via) == (trigger, "@anna", "telegram")
    assert newest.detail == (None if acted.changed else "it was so already")


async def test_what_is_not_there_cannot_be_done(store: Store) -> None:
    with pytest.raises(NotFound, match="there is no job 9"):
        await act(store, JobTrigger.DONE, 9)


# Running one again


async def test_a_run_that_succeeds_makes_the_job_done(store: Store) -> None:
    """Who runs it stands in the row meanwhile, for whoever looks."""
    await put(store, failed_job())

    running = await begin(store)
    ended = await end(store, outcome="done after 0.1 s")

    assert (running.status, running.acted_by) == (JobStatus.RUNNING, "cli: anna (shop-1, process 17)")
    assert (ended.job.status, ended.job.outcome, ended.job.acted_by) == (
        JobStatus.DONE,
        "done after 0.1 s",
        "cli: anna",
    )
    acts = [(entry.action, entry.detail) for entry in await store.read(audit.of_target, "job 1")]
    assert acts == [("done", "done after 0.1 s"), ("retry", "shop-1, process 17")]


async def test_a_run_that_fails_leaves_the_job_for_another_try(store: Store) -> None:
    await put(store, failed_job())

    await begin(store)
    failed = await end(store, is_done=False, outcome="OSError: away")
    again = await begin(store, BORIS, after=3 * MINUTE)

    assert (failed.job.status, failed.job.outcome) == (JobStatus.FAILED, "OSError: away")
    assert again.status is JobStatus.RUNNING


async def test_two_people_do_not_run_it_at_once(store: Store) -> None:
    """The second is told who has it; of many at the same moment one gets it."""
    await put(store, failed_job())

    answers = await asyncio.gather(
        *(begin(store, {**ANNA, "runner": f"shop-1, process {n}"}) for n in range(8)), return_exceptions=True
    )

    (taken,) = (answer for answer in answers if isinstance(answer, KeptJob))
    refused = [answer for answer in answers if isinstance(answer, jobs.Busy)]
    assert len(refused) == 7
    assert str(taken.acted_by) in str(refused[0])


async def test_a_run_that_died_leaves_the_job_free_after_a_while(store: Store) -> None:
    """One that goes on says so, however long it takes; one whose job was taken over does not get it back."""
    await put(store, failed_job())
    await begin(store)
    keep = {"by": ANNA["by"], "runner": ANNA["runner"]}

    assert await store.write(jobs.keep_retry, 1, **keep, now=NOW + 5 * MINUTE)
    with pytest.raises(jobs.Busy):
        await begin(store, BORIS, after=MINUTE + jobs.SILENT_FOR)
    taken = await begin(store, BORIS, after=5 * MINUTE + jobs.SILENT_FOR)

    assert taken.acted_by == "cli: boris (shop-2, process 17)"
    assert not await store.write(jobs.keep_retry, 1, **keep, now=NOW + DAY)
    assert not (await end(store, ANNA, is_done=False)).changed
    assert (await one(store)).status is JobStatus.RUNNING


@pytest.mark.parametrize("status", [JobStatus.DONE, JobStatus.DISCARDED])
async def test_what_was_dealt_with_is_not_run(store: Store, status: JobStatus) -> None:
    await bring_to(store, status)

    with pytest.raises(IllegalTransition, match=f"a job that is {status} cannot take retry"):
        await begin(store)


async def test_what_was_said_during_a_run_stands(store: Store) -> None:
    """Somebody has discarded it meanwhile: that it failed once more does not bring it back."""
    await put(store, failed_job())
    await begin(store)
    await act(store, JobTrigger.DISCARD)

    ended = await end(store, is_done=False, outcome="OSError: away")

    assert (ended.changed, ended.job.status) == (False, JobStatus.DISCARDED)
    assert (await store.read(audit.of_target, "job 1"))[0].action == "failed again"


# There are never too many


async def prune(store: Store, now: Any) -> int:
    run = Run(Policy(days=30), [Task.JOBS])
    while run.task is not None:
        run.note(await store.write(run.chunk, now))
    return run.removed[Task.JOBS]


async def test_what_was_dealt_with_goes_with_the_retention(store: Store) -> None:
    """A month after that, not after it failed; what waits stays."""
    await put(store, *(failed_job(failed_at=NOW - 400 * DAY) for _ in range(4)))
    await act(store, JobTrigger.DONE, 1)
    await act(store, JobTrigger.DISCARD, 2)
    await begin(store, number=3)

    assert await prune(store, NOW + 30 * DAY) == 0
    assert (await store.read(count, Policy(days=30), NOW + 31 * DAY))[Task.JOBS] == 2
    assert await prune(store, NOW + 31 * DAY) == 2
    assert await listed(store, statuses=tuple(JobStatus)) == [4, 3]


def many(numbers: Sequence[int]) -> Any:
    row = {name: getattr(failed_job(), name) for name in Job.__slots__}

    def write(connection: Connection) -> None:
        rows = [row | {"id": ids.uuid7(), "number": number, "status": "failed"} for number in numbers]
        connection.execute(insert(schema.jobs), rows)
        connection.execute(insert(schema.counters).values(name="job_number", value=max(numbers)))

    return write


async def test_of_jobs_that_wait_the_newest_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their numbers, whatever the clocks of services say."""
    monkeypatch.setattr(jobs, "MOST_WAITING", 100)
    await store.write(many(range(1, 131)))
    await begin(store, number=1)

    assert (await store.read(count, Policy(days=30), NOW))[Task.JOBS] == 29
    assert await prune(store, NOW) == 29
    assert sorted(await listed(store, limit=500)) == [1, *range(31, 131)]
    assert await prune(store, NOW) == 0


async def test_a_flood_of_jobs_is_bounded_where_it_is_stored(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits an hour for that."""
    monkeypatch.setattr(jobs, "MOST_WAITING", 100)
    await store.write(many(range(1, 400)))

    await put(store, *(failed_job() for _ in range(120)))

    assert await store.read(jobs.count_failed) <= 100 + 500 - 480 + 20
    assert max(await listed(store, limit=500)) == 519
