"""What is stored, looked at and acted on in the database itself: what `tocsin errors`, `show`, `resolve` … do."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from tocsin import clock
from tocsin.failures import NotFound
from tocsin.lifecycle import IllegalTransition, JobStatus, JobTrigger, Status, Trigger
from tocsin.store import Store, alerts, beats, groups, jobs, queries, shapes

Shape = dict[str, Any]


class Local:
    """A database, as `tocsin.remote.Remote` is a server: the same calls, the same shapes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_settled = True

    def errors(self, **filters: Any) -> Shape:
        """A page of errors; filters as in the API."""
        return shapes.error_list(*self._store.read_now(queries.list_errors, **filters))

    def groups(self, **filters: Any) -> Shape:
        """A page of groups."""
        status = filters.pop("status")
        wanted = Status(status) if status else None
        return shapes.group_list(*self._store.read_now(groups.list_groups, status=wanted, **filters))

    def group(self, name: str) -> Shape:
        """A group by its number, or by the id of one of its errors; raises `NotFound`."""
        is_number = re.fullmatch("[0-9]{1,9}", name)
        number = int(name) if is_number else self._store.read_now(groups.number_of_error, name)
        return self._store.read_now(shapes.whole_group, number, clock.now())

    def stats(self, hours: int, **filters: Any) -> Shape:
        """Statistics of the last hours."""
        return shapes.stats(self._store.read_now(queries.stats, hours, clock.now(), **filters), hours)

    def alerts(self, **filters: Any) -> Shape:
        """A page of alerts."""
        return shapes.alert_list(*self._store.read_now(alerts.list_alerts, **filters))

    def act(self, number: int, trigger: Trigger, *, by: str, span: timedelta | None = None) -> Shape:
        """What became of an act on a group; a failure is a shape too."""
        until = clock.now() + span if span is not None else None
        try:
            acted = self._store.write_now(groups.act, number, trigger, by=f"cli: {by}", via="cli", until=until)
        except (NotFound, IllegalTransition) as problem:
            return {"success": False, "error": str(problem)}
        self._is_settled = self._is_settled and trigger not in (Trigger.RESOLVE, Trigger.REOPEN)
        return shapes.acted(acted)

    def jobs(self, **filters: Any) -> Shape:
        """A page of failed jobs."""
        status = filters.pop("status")
        wanted = {None: jobs.WAITING, "all": tuple(JobStatus)}
        statuses = wanted[status] if status in wanted else (JobStatus(status),)
        return shapes.job_list(*self._store.read_now(jobs.list_jobs, statuses=statuses, **filters))

    def job(self, name: str) -> Shape:
        """A job by its number or its id; raises `NotFound`."""
        is_number = re.fullmatch("[0-9]{1,9}", name)
        number = int(name) if is_number else self._store.read_now(jobs.number_of, name)
        return self._store.read_now(shapes.whole_job, number)

    def act_on_job(self, number: int, trigger: JobTrigger, *, by: str) -> Shape:
        """What became of an act on a job; a failure is a shape too."""
        try:
            return shapes.acted_on_job(self._store.write_now(jobs.act, number, trigger, by=f"cli: {by}", via="cli"))
        except (NotFound, IllegalTransition) as problem:
            return {"success": False, "error": str(problem)}

    def begin_retry(self, number: int, *, by: str, runner: str) -> Shape:
        """Take a job in order to run it; raises `NotFound`, `IllegalTransition`, `jobs.Busy`."""
        taken = self._store.write_now(jobs.begin_retry, number, by=f"cli: {by}", runner=runner, via="cli")
        return shapes.job_row(taken)

    def keep_retry(self, number: int, *, by: str, runner: str) -> None:
        """Say that a run goes on; from another thread, on a connection of its own."""
        store = self._store.unhurried()
        try:
            store.write_now(jobs.keep_retry, number, by=f"cli: {by}", runner=runner)
        finally:
            store.close_now()

    def end_retry(self, number: int, *, by: str, runner: str, is_done: bool, outcome: str) -> Shape:
        """Say what a run has come to; the job's row as it stands now."""
        ended = self._store.write_now(
            jobs.end_retry, number, by=f"cli: {by}", runner=runner, via="cli", is_done=is_done, outcome=outcome
        )
        return shapes.job_row(ended.job)

    def beats(self, environment: str | None = None) -> Shape:
        """The beats of cron jobs, with how each stands."""
        return self._store.read_now(shapes.beat_list, environment)

    def forget_beat(self, name: str, environment: str | None, *, by: str) -> Shape:
        """Remove a beat; raises `NotFound`, `BadInput`."""
        self._is_settled = False  # what rang of it is resolved
        now = clock.now()
        found = self._store.write_now(beats.forget, name, environment, by=f"cli: {by}", via="cli", now=now)
        return shapes.forgotten(found)

    def close(self) -> None:
        """Let the rows follow their groups: a server does it behind its answer, but there may be none at work."""
        while not self._is_settled:
            self._is_settled = not self._store.write_now(groups.settle_rows)
