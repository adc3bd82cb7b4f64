"""Dependencies: what services need, and whether it is there for each of their processes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Integer, and_, case, cast, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from tocsin.model import DependencyState
from tocsin.store.schema import dependencies, instances

MOST = 100
"""Names that are told of at most: those that are away come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a dependency stands for all living processes that have told of it: the worst that one of them says."""

    name: str
    is_away: bool
    is_optional: bool  # for all of those for which it is away; False where one cannot do without
    since: datetime  #   it has been away for the first of them, else there for the last
    processes: int
    away: int  #         of these
    problem: str | None  # what one of them has met


def note(connection: Connection, state: DependencyState, now: datetime) -> None:
    """Note how a dependency stands for a process; what is older than the row changes nothing."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(dependencies).values(
        instance_id=state.instance_id,
        name=state.name,
        service=state.service,
        environment=state.environment,
        is_away=state.is_away,
        is_optional=state.is_optional,
        since=state.since,
        problem=state.problem or None,
    )
    new = statement.excluded
    changes = {column.name: new[column.name] for column in dependencies.c if not column.primary_key}
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[dependencies.c.instance_id, dependencies.c.name],
            set_=changes,
            where=new.since >= dependencies.c.since,
        )
    )


def current(connection: Connection, now: datetime, silent_after: timedelta) -> list[Standing]:
    """
    How each dependency stands, those away first; a process that has ended or is silent does not count.

    Args:
        silent_after: a process that was not seen for so long is silent.
    """
    is_away = dependencies.c.is_away.is_(True)
    since_type = dependencies.c.since.type
    away = func.sum(cast(is_away, Integer))
    needed = func.sum(cast(and_(is_away, dependencies.c.is_optional.is_(False)), Integer))
    found = (
        select(
            dependencies.c.name,
            away.label("away"),
            needed.label("needed"),
            func.count().label("processes"),
            func.min(case((is_away, dependencies.c.since)), type_=since_type).label("away_since"),
            func.max(dependencies.c.since, type_=since_type).label("since"),
            func.max(case((is_away, dependencies.c.problem))).label("problem"),
            func.sum(cast(dependencies.c.is_optional.is_(False), Integer)).label("not_optional"),
        )
        .join(instances, instances.c.id == dependencies.c.instance_id)
        .where(is_living(now, silent_after))
        .group_by(dependencies.c.name)
        .order_by(away.desc(), dependencies.c.name)
        .limit(MOST)
    )
    return [
        Standing(
            name=row.name,
            is_away=row.away > 0,
            is_optional=not (row.needed if row.away else row.not_optional),
            since=row.away_since if row.away else row.since,
            processes=row.processes,
            away=row.away,
            problem=row.problem,
        )
        for row in connection.execute(found)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """A dependency that is there for every living process of a service that has told of it."""

    name: str
    service: str
    environment: str
    since: datetime  # the last of them has found it there


def all_there(connection: Connection, now: datetime, silent_after: timedelta) -> list[There]:
    """Of each service the dependencies that are there for all of its processes; see `current`."""
    of = (dependencies.c.name, dependencies.c.service, dependencies.c.environment)
    found = (
        select(*of, func.max(dependencies.c.since, type_=dependencies.c.since.type).label("since"))
        .join(instances, instances.c.id == dependencies.c.instance_id)
        .where(is_living(now, silent_after))
        .group_by(*of)
        .having(func.sum(cast(dependencies.c.is_away.is_(True), Integer)) == 0)
        .order_by(*of)
        .limit(10 * MOST)
    )
    return [There(**row) for row in connection.execute(found).mappings()]


def is_living(now: datetime, silent_after: timedelta) -> ColumnElement[bool]:
    """
    Whether a process, of those in ``instances``, has neither ended nor fallen silent.

    Who says rarely how it is has longer for it: over a network that is once a minute.
    """
    is_rare = instances.c.beats_every_s > silent_after.total_seconds() / 3
    return and_(
        instances.c.ended_at.is_(None),
        or_(
            instances.c.last_seen > now - silent_after,
            and_(is_rare, instances.c.last_seen > now - 3 * silent_after),
        ),
    )


def sweep(connection: Connection, limit: int = 10_000) -> int:
    """Remove what processes have told whose rows are gone; returns how many there were."""
    gone = (
        select(dependencies.c.instance_id)
        .distinct()
        .outerjoin(instances, instances.c.id == dependencies.c.instance_id)
        .where(instances.c.id.is_(None))
        .limit(limit)
    )
    return connection.execute(delete(dependencies).where(dependencies.c.instance_id.in_(gone))).rowcount
