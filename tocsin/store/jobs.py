"""
Jobs: pieces of a user's work that failed after their retries, kept for a person.

The table is bounded: what is done with goes with the retention, and of what waits the newest `MOST_WAITING` stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from tocsin.failures import NotFound, TocsinError
from tocsin.lifecycle import JobStatus, JobTrigger, advance_job
from tocsin.model import Job
from tocsin.store import audit, cursors, schema
from tocsin.store.leases import database_now
from tocsin.store.queries import is_error_id

MOST_WAITING: Final = 10_000
"""So many jobs may wait for a person; the oldest beyond it go."""

SILENT_FOR: Final = timedelta(minutes=5)
"""A run that has not said for so long that it goes on is over: the job may be run again."""

WAITING: Final = (JobStatus.FAILED, JobStatus.RUNNING)
"""What a person has yet to deal with."""

_LOOK_EVERY = 500  # jobs; that often whoever stores one looks whether there are too many
_jobs = schema.jobs.c


class Busy(TocsinError):
    """Somebody has the job run just now; two at once could do its work twice."""


@dataclass(slots=True, kw_only=True)
class KeptJob(Job):
    """A row of ``jobs``, with the number of its error's group."""

    number: int
    status: JobStatus
    acted_at: datetime | None  # of a run: when it last said that it goes on
    acted_by: str | None
    outcome: str | None  #        what the last run again has come to
    group: int | None

    @classmethod
    def from_row(cls, row: RowMapping) -> KeptJob:
        values: dict[str, Any] = dict(row)
        return cls(**values | {"status": JobStatus(values["status"])})


@dataclass(frozen=True, slots=True)
class Acted:
    """What an act has come to; ``changed`` is False when all was so already."""

    job: KeptJob
    before: JobStatus
    changed: bool


def target(number: int) -> str:
    """A job, as the audit and people name it."""
    return f"job {number}"


def add(connection: Connection, told: Sequence[Job]) -> None:
    """
    Store jobs that failed; one that is there already stays as it is.

    Args:
        told: by their ids, against deadlocks; numbers follow when all of them are held, for the same reason.
    """
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    new: list[str] = []
    for job in told:
        values = {one.name: getattr(job, one.name) for one in fields(Job)} | {"status": JobStatus.FAILED.value}
        statement = insert(schema.jobs).values(values).on_conflict_do_nothing(index_elements=[_jobs.id])
        new += connection.execute(statement.returning(_jobs.id)).scalars()
    if not new:
        return
    counters = schema.counters
    counting = insert(counters).values(name="job_number", value=len(new))
    counted = counting.on_conflict_do_update(
        index_elements=[counters.c.name], set_={"value": counters.c.value + counting.excluded.value}
    )
    last = connection.execute(counted.returning(counters.c.value)).scalar_one()
    for number, job_id in enumerate(new, start=last - len(new) + 1):
        connection.execute(update(schema.jobs).where(_jobs.id == job_id).values(number=number))
    if last // _LOOK_EVERY > (last - len(new)) // _LOOK_EVERY:
        remove(connection, is_beyond(connection), 2 * _LOOK_EVERY + len(new))


def list_jobs(
    connection: Connection,
    *,
    statuses: Collection[JobStatus] = WAITING,
    service: str | None = None,
    environment: str | None = None,
    q: str | None = None,
    limit: int = 50,
    before: str | None = None,
) -> tuple[list[KeptJob], str | None]:
    """
    Jobs, the last failed first, and the `before` of the next page (None: this was the last).

    Args:
        q: a part of function, exception type or message, in any case.

    Raises:
        BadInput: `before` is not what an earlier call gave.
    """
    query = _JOBS.where(_jobs.status.in_([str(status) for status in statuses]), _jobs.number.is_not(None))
    for column, value in ((_jobs.service, service), (_jobs.environment, environment)):
        if value is not None:
            query = query.where(column == value)
    if q:
        places = (_jobs.function, _jobs.exception_type, _jobs.message)
        query = query.where(or_(*(place.icontains(q, autoescape=True) for place in places)))
    if before is not None:
        moment, job_id = cursors.decode(before)
        if not is_error_id(job_id):  # a place in another list
            raise cursors.refusal()
        query = query.where(or_(_jobs.failed_at < moment, and_(_jobs.failed_at == moment, _jobs.id < job_id)))
    query = query.order_by(_jobs.failed_at.desc(), _jobs.id.desc()).limit(limit + 1)
    found = [KeptJob.from_row(row) for row in connection.execute(query).mappings()]
    page = found[:limit]
    return page, cursors.encode(page[-1].failed_at, page[-1].id) if len(found) > limit else None


def by_number(connection: Connection, number: int) -> KeptJob:
    """The job that people call by this number; raises `NotFound`."""
    row = connection.execute(_JOBS.where(_is_numbered(number))).mappings().first()
    if row is None:
        raise NotFound(target(number))
    return KeptJob.from_row(row)


def number_of(connection: Connection, job_id: str) -> int:
    """The number of the job with this id, a UUID; raises `NotFound`."""
    number = None
    if is_error_id(job_id.lower()):
        query = select(_jobs.number).where(_jobs.id == job_id.lower())
        number = connection.execute(query).scalar()
    if number is None:
        raise NotFound(f"job {job_id[:40]}")
    return int(number)


def count_failed(connection: Connection) -> int:
    """How many jobs wait for a person."""
    query = select(func.count()).select_from(schema.jobs).where(_IS_WAITING)
    return int(connection.execute(query).scalar_one())


def act(
    connection: Connection, number: int, trigger: JobTrigger, *, by: str, via: str, now: datetime | None = None
) -> Acted:
    """
    Say that a job is done, or that nobody will do it any more; and write it into the audit.

    Raises:
        NotFound: there is no such job.
        IllegalTransition: it makes no sense; nothing was changed.
    """
    if trigger is JobTrigger.RETRY:
        raise ValueError("a retry begins and ends: begin_retry, end_retry")
    job = _held(connection, number)
    now = now or database_now(connection)
    status = advance_job(job.status, trigger)
    changed = status != job.status
    if changed:
        _save(connection, number, status=status.value, acted_at=now, acted_by=by)
    detail = None if changed else "it was so already"
    audit.record(connection, actor=by, via=via, action=trigger.value, target=target(number), detail=detail, now=now)
    return Acted(by_number(connection, number), job.status, changed)


# Running one again: whoever does it holds the job meanwhile.


def begin_retry(
    connection: Connection, number: int, *, by: str, runner: str, via: str, now: datetime | None = None
) -> KeptJob:
    """
    Take a job in order to run it; it is ours until `end_retry`, or until it was silent for `SILENT_FOR`.

    Args:
        by: who, as the audit shall name them.
        runner: which process of theirs; no two may have the same.

    Raises:
        NotFound: there is no such job.
        IllegalTransition: it is done, or discarded.
        Busy: somebody else runs it.
    """
    job = _held(connection, number)
    now = now or database_now(connection)
    if job.status is JobStatus.RUNNING and job.acted_at is not None and job.acted_at > now - SILENT_FOR:
        since = f"{job.acted_at:%H:%M:%S} UTC"
        raise Busy(
            f"{target(number)} is being run by {job.acted_by}, who was last heard of at {since}; it was left alone"
        )
    before = JobStatus.FAILED if job.status is JobStatus.RUNNING else job.status
    status = advance_job(before, JobTrigger.RETRY)
    _save(connection, number, status=status.value, acted_at=now, acted_by=_owner(by, runner))
    audit.record(connection, actor=by, via=via, action="retry", target=target(number), detail=runner, now=now)
    return by_number(connection, number)


def keep_retry(connection: Connection, number: int, *, by: str, runner: str, now: datetime | None = None) -> bool:
    """Say that a run goes on; False: the job is not ours any more."""
    now = now or database_now(connection)
    mine = and_(_is_numbered(number), _jobs.status == JobStatus.RUNNING.value, _jobs.acted_by == _owner(by, runner))
    return connection.execute(update(schema.jobs).where(mine).values(acted_at=now)).rowcount > 0


def end_retry(
    connection: Connection,
    number: int,
    *,
    by: str,
    runner: str,
    via: str,
    is_done: bool,
    outcome: str,
    now: datetime | None = None,
) -> Acted:
    """
    Say what a run has come to.

    Where somebody has said something else of the job meanwhile, that stands, and nothing changes but the audit.
    """
    job = _held(connection, number)
    now = now or database_now(connection)
    is_ours = job.status is JobStatus.RUNNING and job.acted_by == _owner(by, runner)
    if is_ours:
        status = JobStatus.DONE if is_done else JobStatus.FAILED
        _save(connection, number, status=status.value, acted_at=now, acted_by=by, outcome=outcome)
    action = "done" if is_done else "failed again"
    audit.record(connection, actor=by, via=via, action=action, target=target(number), detail=outcome, now=now)
    return Acted(by_number(connection, number), job.status, is_ours)


def _owner(by: str, runner: str) -> str:
    return f"{by} ({runner})"


# What goes.


def is_beyond(connection: Connection) -> ColumnElement[bool] | None:
    """What is true of failed jobs beyond `MOST_WAITING`, by number since clocks may be wrong; None: there are none."""
    last = select(_jobs.number).where(_IS_WAITING, _jobs.number.is_not(None)).order_by(_jobs.number.desc())
    number = connection.execute(last.offset(MOST_WAITING).limit(1)).scalar()
    return None if number is None else and_(_jobs.status == JobStatus.FAILED.value, _jobs.number <= number)


def is_over(before: datetime) -> ColumnElement[bool]:
    """What is true of jobs that were dealt with before a moment."""
    is_settled = _jobs.status.in_([JobStatus.DONE.value, JobStatus.DISCARDED.value])
    return and_(is_settled, func.coalesce(_jobs.acted_at, _jobs.failed_at, type_=_jobs.failed_at.type) < before)


def remove(connection: Connection, condition: ColumnElement[bool] | None, at_most: int) -> int:
    """Remove some of these, the oldest first; those that somebody holds stay for the next time."""
    if condition is None:
        return 0
    chunk = select(_jobs.id).where(condition).order_by(_jobs.number).limit(at_most).with_for_update(skip_locked=True)
    return connection.execute(delete(schema.jobs).where(_jobs.id.in_(chunk))).rowcount


# In the words of the partial index.
_IS_WAITING = schema.jobs.c.status.in_([literal_column(f"'{status}'") for status in WAITING])

_of_group = schema.error_logs.join(schema.error_groups, schema.error_groups.c.id == schema.error_logs.c.group_id)
_JOBS: Select[Any] = select(
    *(schema.jobs.c[one.name] for one in fields(KeptJob) if one.name != "group"),
    select(schema.error_groups.c.number)
    .select_from(_of_group)
    .where(schema.error_logs.c.id == schema.jobs.c.error_id)
    .scalar_subquery()
    .label("group"),
)


def _is_numbered(number: int) -> ColumnElement[bool]:
    # People type anything; a number that the column cannot hold is no job's.
    return _jobs.number == (number if 0 < number < 2**31 else 0)


def _held(connection: Connection, number: int) -> KeptJob:
    """The job, held until the transaction ends."""
    connection.execute(select(_jobs.id).where(_is_numbered(number)).with_for_update()).first()
    return by_number(connection, number)


def _save(connection: Connection, number: int, **values: Any) -> None:
    connection.execute(update(schema.jobs).where(_is_numbered(number)).values(**values))
