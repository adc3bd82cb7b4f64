"""
Errors come in: rows, groups, counts, and the mark for the alerts, in one transaction.

Locks are taken in one order (ids received, rows, what is held, groups, releases, the counter, counts, totals, progress,
instances) and within each by key, so that writers wait for one another instead of meeting in a deadlock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, TypeGuard

from sqlalchemy import Connection, Table, and_, bindparam, case, delete, func, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from tocsin import ids, lifecycle
from tocsin.failures import Overtaken
from tocsin.lifecycle import Status, Trigger
from tocsin.model import (
    Amendment,
    Batch,
    EarlyRecord,
    Entry,
    ErrorRecord,
    Instance,
    Recovery,
    Repeats,
    Severity,
    Stored,
    worst,
)
from tocsin.store import audit, bulk, facts, groups, held, schema
from tocsin.store.engine import wake_others
from tocsin.store.groups import Group, Mark
from tocsin.store.held import Later

OLD_RELEASE_GRACE = timedelta(minutes=30)
"""For so long after a resolve an older release, still running somewhere, may fail without reopening."""

SILENT = "silent"
"""How a process ended of which nothing was heard any more, so that it was given up: it may be back."""

_logs = schema.error_logs
_groups = schema.error_groups
_releases = schema.releases
_progress = schema.spool_progress
_received = schema.received


def write_batch(connection: Connection, batch: Batch, now: datetime) -> list[Stored]:
    """
    Store what an exporter has read, all of it or nothing; what was stored before counts nothing.

    An error whose id is there already is a replay; what came from outside is one too when its id was
    received within the last day, since it may be there without a row. An error that happened before its
    group was resolved, or in an older release shortly after, is late: it counts, and its row is
    resolved, but it does not reopen the group. A group takes the worst severity that it sees, and when
    it comes back that of what came; of categories the last that is not ``unknown`` wins.

    Args:
        batch: entries in the order in which they happened. Amendments and repeats of an error that is
            not there are left out; those that another tocsin has sent wait for it, where it has not been
            received. An error that is summed up is written out where its group has none.
        now: the database's time, as far as the caller knows it.

    Returns:
        One for each new row, in order.

    Raises:
        DBAPIError: the database refuses a value; split the batch to find which.
        Overtaken: the segment is not stored up to where this batch starts, but further: somebody else
            reads it too. Nothing of the batch is stored.
    """
    entries, missing = _take_ids(connection, batch.entries, now)
    newest = _newest_errors(connection, entries)
    records = _to_store(entries, newest)
    there = {error_id for error_id, record in records.items() if isinstance(record, EarlyRecord)}
    new = there | _insert_rows(connection, {key: records[key] for key in records.keys() - there}, now)
    entries = _summed_up(entries, records, new, newest)
    entries += held.release(connection, [key for key in new if records[key].from_outside and ids.is_own(key)])
    earlier = _groups_of_earlier(connection, entries, new)
    held.hold(connection, _too_early(entries, missing - earlier.keys()), now)
    firsts = [record for error_id, record in records.items() if error_id in new]
    known, fresh = _hold_groups(connection, set(earlier.values()), firsts)
    # A row changes only while its group is held, so what is read of it from here on is true.
    amended = {entry.error_id for entry in entries if isinstance(entry, Amendment)}
    rows = _stored_rows(connection, {key for key, group_id in earlier.items() if group_id in known}, amended)
    counted = set(rows)
    rows |= {record.id: _Row.of(record) for record in firsts}
    instances = _instances(batch)
    first_seen = _first_seen(connection, rows.values(), known, instances, now)

    writing = _Writing(rows=rows, counted=counted, known=known, fresh=fresh, first_seen=first_seen, now=now)
    stored = []
    for entry in entries:
        if isinstance(entry, Amendment):
            writing.amend(entry)
        elif isinstance(entry, Repeats):
            writing.repeat(entry)
        elif isinstance(entry, Recovery):
            writing.recover(entry)
        elif records.get(entry.id) is entry and entry.id in new:
            reason = writing.add(entry)
            stored.append((entry, reason))

    _number(connection, [known[group_id] for group_id in fresh])
    groups.save(connection, [known[group_id] for group_id in writing.touched])
    _save_rows(connection, [rows[error_id] for error_id in writing.amended])
    _save_counts(connection, [rows[error_id] for error_id in writing.repeated.keys() - writing.amended.keys()])
    _add(connection, schema.error_counts, writing.counts)
    _add(connection, schema.hourly_totals, writing.totals)
    if batch.segment is not None:
        _advance(connection, batch, now)
    for instance in instances:
        _write_instance(connection, instance, now)
    facts.write(connection, batch.facts, now)
    for group, message in writing.recovered:
        audit.record(
            connection,
            actor=audit.BY_ITSELF,
            via="itself",
            action=Trigger.RESOLVE,
            target=f"#{group.number}",
            detail=message,
            now=now,
        )
    if any(known[group_id].mark not in (None, Mark.SEEN) for group_id in writing.touched):
        wake_others(connection)
    return [
        Stored(
            error_id=record.id,
            number=known[rows[record.id].group_id].number,
            severity=rows[record.id].severity,
            category=rows[record.id].category,
            title=record.title,
            reason=reason,
        )
        for record, reason in stored
    ]


def progress(connection: Connection, segments: Collection[str]) -> dict[str, int]:
    """Up to which byte each of these segments is stored; those of which nothing is known are left out."""
    query = select(_progress.c.segment, _progress.c.position).where(_progress.c.segment.in_(list(segments)))
    return {row.segment: row.position for row in connection.execute(query)}


def known_groups(connection: Connection, group_ids: Collection[str]) -> set[str]:
    """Those of the groups that are there."""
    return set(connection.execute(select(_groups.c.id).where(_groups.c.id.in_(sorted(group_ids)))).scalars())


def write_instance(connection: Connection, instance: Instance, now: datetime) -> None:
    """
    Make or refresh the row of a watched process, and note its release; what is not known stays.

    A dead process is not seen by what others find of it. What comes late changes nothing of what was said
    since, but how it ended; and one that was given up for its silence is back when it says that it lives.
    """
    _note_releases(connection, _releases_of([instance]), now)
    _write_instance(connection, instance, now)


def note_ended(connection: Connection, instance_ids: Collection[str], now: datetime) -> None:
    """Of processes that are gone and have left nothing, so that they ended in order; who knows more has said it."""
    table = schema.instances
    ended = update(table).where(table.c.id.in_(sorted(instance_ids)), table.c.ended_at.is_(None))
    if instance_ids:
        connection.execute(ended.values(ended_at=now, ended_how="ended", is_shutting_down=False))


def promise_nothing(connection: Connection, instance_ids: Collection[str]) -> None:
    """Of processes whose rows nobody keeps any more, until somebody does again: their silence means nothing."""
    table = schema.instances
    if instance_ids:
        connection.execute(update(table).where(table.c.id.in_(sorted(instance_ids))).values(beats_every_s=0.0))


def _write_instance(connection: Connection, instance: Instance, now: datetime) -> None:
    table = schema.instances
    values = {name: getattr(instance, name) for name in _INSTANCE_COLUMNS}
    seen_at = min(instance.seen_at or now, now) if instance.is_alive else instance.started_at
    statement = _upsert(connection, table).values(**values, last_seen=instance.ended_at or seen_at)
    new = statement.excluded
    is_newer = or_(new.last_seen >= table.c.last_seen, new.ended_at.is_not(None))
    changes: dict[str, Any] = {
        column.name: case((is_newer, func.coalesce(new[column.name], column)), else_=column)
        for column in table.columns
        if not column.primary_key
    }
    for column in (table.c.last_seen, table.c.lost):  # these only grow
        changes[column.name] = case((new[column.name] > column, new[column.name]), else_=column)
    is_back = and_(table.c.ended_how == SILENT, new.ended_at.is_(None), new.last_seen > table.c.last_seen)
    for column in (table.c.ended_at, table.c.ended_how):
        changes[column.name] = case((is_back, None), else_=func.coalesce(new[column.name], column))
    connection.execute(statement.on_conflict_do_update(index_elements=[table.c.id], set_=changes))


_INSTANCE_COLUMNS = [field.name for field in fields(Instance) if field.name in schema.instances.c]


def _instances(batch: Batch) -> list[Instance]:
    """The processes that a batch tells of, each as it was last, by id."""
    told = [*batch.instances, *([batch.instance] if batch.instance is not None else [])]
    return [instance for _, instance in sorted({instance.id: instance for instance in told}.items())]


def _releases_of(instances: Iterable[Instance]) -> set[tuple[str, str]]:
    return {(instance.service, instance.release) for instance in instances if instance.release is not None}


@dataclass(slots=True, kw_only=True)
class _Row:
    """What of a row of ``error_logs`` may matter to what comes after it."""

    id: str
    group_id: str
    timestamp: datetime
    severity: Severity
    category: str
    release: str | None
    count: int
    handled: bool | None
    mechanism: str | None
    context: dict[str, Any]
    resolved: bool | None
    resolved_at: datetime | None

    @classmethod
    def of(cls, record: ErrorRecord) -> _Row:
        return cls(
            id=record.id,
            group_id=_group_of(record),
            timestamp=record.timestamp,
            severity=record.severity,
            category=record.category,
            release=record.release,
            count=record.count,
            handled=record.handled,
            mechanism=record.mechanism,
            context=record.context,
            resolved=False,
            resolved_at=None,
        )


class _Writing:
    """Takes the entries of a batch one after the other, in memory; what they change is stored at the end."""

    def __init__(
        self,
        *,
        rows: Mapping[str, _Row],
        counted: Collection[str],
        known: Mapping[str, Group],
        fresh: Collection[str],
        first_seen: Mapping[tuple[str, str], datetime],
        now: datetime,
    ) -> None:
        self._rows = rows
        self._counted = set(counted)
        self._groups = known
        self._unborn = set(fresh)
        self._first_seen = first_seen
        self._now = now
        self.touched: dict[str, None] = {}
        self.amended: dict[str, None] = {}
        self.repeated: dict[str, None] = {}  # of which the count alone has changed, unless they are amended too
        self.counts: Counter[tuple[Any, ...]] = Counter()
        self.totals: Counter[tuple[Any, ...]] = Counter()
        self.recovered: list[tuple[Group, str]] = []  # with what is said of it

    def add(self, record: ErrorRecord) -> str | None:
        """A new error; returns the reason to ring, if there is one."""
        row = self._rows[record.id]
        group = self._groups[row.group_id]
        early = record if isinstance(record, EarlyRecord) else None
        is_newest = record.timestamp >= group.last_seen
        if early is not None and not early.rings:
            self._stood_before(group, early)
            reason = None
        else:
            late, reason = self._happened(group, record.timestamp, row.severity, record.release)
            if late and early is not None:
                group.rows_pending = True
            elif late:
                row.resolved, row.resolved_at = True, group.resolved_at
                self.amended[row.id] = None
        if is_newest:
            group.last_error_id = record.id
            group.last_release = record.release or group.last_release
        if row.category != "unknown" and (is_newest or early is None):
            group.category = row.category
        self._count(group, row, record.timestamp, row.count)
        self._counted.add(row.id)
        return reason

    def repeat(self, repeats: Repeats) -> None:
        """The same error again, so many times."""
        row = self._rows.get(repeats.error_id)
        if row is None or row.id not in self._counted:
            return
        group = self._groups[row.group_id]
        self._happened(group, repeats.timestamp, row.severity, row.release)
        row.count += repeats.count
        self.repeated[row.id] = None
        self._count(group, row, repeats.timestamp, repeats.count)

    def amend(self, amendment: Amendment) -> None:
        """Somebody who saw the error later knows more about it."""
        row = self._rows.get(amendment.error_id)
        if row is None or row.id not in self._counted:
            return
        group = self._groups[row.group_id]
        self.amended[row.id] = None
        self.touched[group.id] = None
        # Its repeats stay as they were counted, each in its own hour: only the error itself moves.
        self._total(group, row, row.timestamp, -1)
        row.severity = worst(row.severity, amendment.severity or row.severity)
        row.category = amendment.category or row.category
        self._total(group, row, row.timestamp, 1)
        row.handled = False if amendment.handled is False else row.handled
        row.mechanism = amendment.mechanism or row.mechanism
        row.context = amendment.context | row.context
        if row.category != "unknown" and amendment.category:
            group.category = row.category
        if row.severity.rank > group.severity.rank:
            self._mark(group, self._grown(group, row.severity))

    def recover(self, recovery: Recovery) -> None:
        """
        It is over: the group is resolved, unless a person has said something of it that goes further.

        What has happened since, in another process perhaps, keeps it open.
        """
        row = self._rows.get(recovery.error_id)
        group = self._groups.get(row.group_id) if row is not None else None
        if group is None or group.status not in (Status.OPEN, Status.ACKNOWLEDGED):
            return
        if group.last_seen > recovery.timestamp:
            return
        group.status, _ = lifecycle.advance(group.status, Trigger.RESOLVE)
        group.resolved_at, group.resolved_by, group.rows_pending = recovery.timestamp, audit.BY_ITSELF, True
        group.resolved_in_release = None
        self.recovered.append((group, recovery.message))
        self._mark(group, Mark.RECOVERED)

    def _happened(
        self, group: Group, timestamp: datetime, severity: Severity, release: str | None
    ) -> tuple[bool, str | None]:
        """Move the group on; whether the error is late, and the reason to ring."""
        if group.status == Status.MUTED and group.muted_until is not None and group.muted_until <= self._now:
            groups.unmute(group, self._now)
        late = self._is_late(group, timestamp, release)
        if late:
            self._mark(group, self._grown(group, severity))
            return True, None
        before = None if group.id in self._unborn else group.status
        self._unborn.discard(group.id)
        group.status, reason = lifecycle.advance(before, Trigger.ERROR)
        if before == Status.RESOLVED and group.status == Status.OPEN:
            group.regressions += 1
            group.severity = severity
        mark = self._grown(group, severity)
        self._mark(group, Mark(reason.value) if reason else mark)
        return False, reason.value if reason else None

    @staticmethod
    def _grown(group: Group, severity: Severity) -> Mark:
        """Let the group be at least so severe; what that is to the alerts."""
        is_graver = severity.rank > group.severity.rank
        group.severity = severity if is_graver else group.severity
        return Mark.GRAVER if is_graver else Mark.SEEN

    def _stood_before(self, group: Group, record: EarlyRecord) -> None:
        """
        An error of before joins its group and rings nobody.

        A group of such errors is resolved when all of them are; nobody is named for it. What a person has
        said of the group since then stands.
        """
        is_first = group.id in self._unborn
        self._unborn.discard(group.id)
        self.touched[group.id] = None
        group.severity = worst(group.severity, record.severity)
        if is_first and record.resolved_at is not None:
            group.status, group.resolved_at = Status.RESOLVED, record.resolved_at
        elif group.resolved_at is None or group.resolved_by is not None:
            group.rows_pending = group.rows_pending or self._is_late(group, record.timestamp, None)
        elif record.resolved_at is None:
            group.resolved_at = None
            group.status = Status.OPEN if group.status == Status.RESOLVED else group.status
        elif group.status == Status.RESOLVED:
            group.resolved_at = max(group.resolved_at, record.resolved_at)

    def _is_late(self, group: Group, timestamp: datetime, release: str | None) -> bool:
        if group.resolved_at is None:
            return False
        if timestamp <= group.resolved_at:
            return True
        if group.status != Status.RESOLVED or release is None or group.resolved_in_release is None:
            return False
        if self._now > group.resolved_at + OLD_RELEASE_GRACE:
            return False
        seen = self._first_seen.get((group.service, release))
        resolved_in = self._first_seen.get((group.service, group.resolved_in_release))
        return seen is not None and resolved_in is not None and seen < resolved_in

    def _count(self, group: Group, row: _Row, timestamp: datetime, count: int) -> None:
        group.count += count
        group.first_seen = min(group.first_seen, timestamp)
        group.last_seen = max(group.last_seen, timestamp)
        if (
            group.status == Status.MUTED
            and group.mute_until_count is not None
            and group.count >= group.mute_until_count
        ):
            groups.unmute(group, self._now)
        self.counts[group.id, _hour(timestamp)] += count
        self._total(group, row, timestamp, count)

    def _total(self, group: Group, row: _Row, timestamp: datetime, count: int) -> None:
        self.totals[_hour(timestamp), row.severity.value, row.category, group.service, group.environment] += count

    def _mark(self, group: Group, mark: Mark) -> None:
        self.touched[group.id] = None
        if group.status != Status.IGNORED:
            group.raise_mark(mark, self._now)


def _id_from_outside(entry: Entry) -> str | None:
    """The id by which it is told when something from outside comes again."""
    if isinstance(entry, ErrorRecord):
        return entry.id if entry.from_outside and not entry.is_synthetic else None
    return entry.id if isinstance(entry, Repeats) else None


def _take_ids(connection: Connection, entries: Sequence[Entry], now: datetime) -> tuple[Sequence[Entry], set[str]]:
    """
    The entries without those from outside that were here before, and errors that they speak of but that were not.

    The ids of the others are noted. Those of errors spoken of are too, for a moment: so it waits for whoever
    is storing such an error just now, or has that wait, and one of the two sees what the other has left.
    """
    given_ids = {given for entry in entries if (given := _id_from_outside(entry)) is not None}
    asked = {entry.error_id for entry in entries if _may_be_early(entry)} - given_ids
    ids = sorted(given_ids | asked)
    if not ids:
        return entries, set()
    if bulk.is_for(connection):
        rows = [(given, now) for given in ids]
        names = ("id", "received_at")
        then = "ON CONFLICT DO NOTHING RETURNING old.id::text"
        new = set(bulk.insert(connection, _received, names, rows, then).scalars())
    else:
        statement = _upsert(connection, _received).on_conflict_do_nothing().returning(_received.c.id)
        new = set(connection.execute(statement, [{"id": given, "received_at": now} for given in ids]).scalars())
    if missing := new & asked:
        connection.execute(delete(_received).where(_received.c.id.in_(sorted(missing))))
    kept: list[Entry] = []
    for entry in entries:
        given = _id_from_outside(entry)
        if given is None or given in new:
            kept.append(entry)
            new.discard(given or "")  # the same once more in one batch
    return kept, missing


def _may_be_early(entry: Entry) -> TypeGuard[Later]:
    """Whether its error may come after it: it went by a network, and there may be several ways."""
    if isinstance(entry, Amendment | Recovery):
        return entry.is_shipped
    return isinstance(entry, Repeats) and entry.id is not None


def _too_early(entries: Iterable[Entry], missing: Collection[str]) -> list[Later]:
    return [entry for entry in entries if _may_be_early(entry) and entry.error_id in missing]


def _newest_errors(connection: Connection, entries: Iterable[Entry]) -> dict[str, str]:
    """Of the groups of errors that are to be summed up: the newest full error, where there is one."""
    wanted = {_group_of(entry) for entry in entries if isinstance(entry, ErrorRecord) and entry.is_summed_up}
    if not wanted:
        return {}
    joined = _groups.join(_logs, and_(_logs.c.id == _groups.c.last_error_id, _logs.c.group_id == _groups.c.id))
    query = select(_groups.c.id, _logs.c.id.label("error_id")).select_from(joined)
    return {row.id: row.error_id for row in connection.execute(query.where(_groups.c.id.in_(sorted(wanted))))}


def _to_store(entries: Iterable[Entry], newest: Mapping[str, str]) -> dict[str, ErrorRecord]:
    """The errors that get a row, by id, each id once, in order."""
    records: dict[str, ErrorRecord] = {}
    written = set(newest)
    for entry in entries:
        # A synthetic error has shown that the way is open by coming here; where that is written down
        # is for whoever sends them to say.
        if not isinstance(entry, ErrorRecord) or entry.is_synthetic:
            continue
        if entry.is_summed_up and _group_of(entry) in written:
            continue
        written.add(_group_of(entry))
        records.setdefault(entry.id, entry)
    return records


def _summed_up(
    entries: Iterable[Entry], records: Mapping[str, ErrorRecord], new: Collection[str], newest: Mapping[str, str]
) -> list[Entry]:
    """
    The entries, those that get no row as repeats of the newest before them in their group.

    Those of an hour are one, up to where something else is said of that error: each would do the same.
    """
    latest = dict(newest)
    sums: dict[tuple[str, datetime], tuple[Repeats, datetime]] = {}  # with the time of the first
    kept: list[Entry] = []
    for entry in entries:
        if not isinstance(entry, ErrorRecord) or entry.is_synthetic:
            kept.append(entry)
            sums.clear()
        elif not entry.is_summed_up or records.get(entry.id) is entry:
            kept.append(entry)
            if entry.id in new or _group_of(entry) not in latest:  # else its row was there before
                latest[_group_of(entry)] = entry.id
        elif error_id := latest.get(_group_of(entry)):
            key = error_id, _hour(entry.timestamp)
            repeats, first = sums.get(key, (None, entry.timestamp))
            if repeats is None or entry.timestamp < first:
                repeats = Repeats(error_id=error_id, count=entry.count, timestamp=entry.timestamp)
                sums[key] = repeats, entry.timestamp
                kept.append(repeats)
            else:
                repeats.count += entry.count
                repeats.timestamp = max(repeats.timestamp, entry.timestamp)
    return kept


_COPIED = (
    *("id", "timestamp", "severity", "category", "message", "stack", "context", "environment", "count", "service"),
    *("release", "exception_type", "trace_id", "span_id", "handled", "mechanism", "instance_id"),
)
_ADDED = ("group_id", "resolved", "created_at")
_CONTEXT = _COPIED.index("context")
_copied = attrgetter(*_COPIED)


def _insert_rows(connection: Connection, records: Mapping[str, ErrorRecord], now: datetime) -> set[str]:
    """Insert the rows that are not there; returns their ids."""
    if not records:
        return set()
    rows = [(*_copied(record), _group_of(record), False, now) for _, record in sorted(records.items())]
    if bulk.is_for(connection):
        texts = [(*row[:_CONTEXT], bulk.as_json(row[_CONTEXT]), *row[_CONTEXT + 1 :]) for row in rows]
        then = "ON CONFLICT (id) DO NOTHING RETURNING old.id::text"
        return set(bulk.insert(connection, _logs, _COPIED + _ADDED, texts, then).scalars())
    statement = _upsert(connection, _logs).on_conflict_do_nothing(index_elements=[_logs.c.id]).returning(_logs.c.id)
    values = [dict(zip(_COPIED + _ADDED, row, strict=True)) for row in rows]
    return set(connection.execute(statement, values).scalars())


def _groups_of_earlier(connection: Connection, entries: Iterable[Entry], new: Collection[str]) -> dict[str, str]:
    """Error and group of the rows stored earlier that these amend or repeat."""
    later = {entry.error_id for entry in entries if isinstance(entry, Amendment | Repeats | Recovery)}
    wanted = later.difference(new)
    if not wanted:
        return {}
    query = select(_logs.c.id, _logs.c.group_id).where(_logs.c.id.in_(sorted(wanted)), _logs.c.group_id.is_not(None))
    return {row.id: row.group_id for row in connection.execute(query)}


def _stored_rows(connection: Connection, error_ids: Set[str], amended: Set[str]) -> dict[str, _Row]:
    """Rows as they are stored; the context, most of what a row is, of those alone that are amended."""
    names = [field.name for field in fields(_Row)]
    rows = {}
    for wanted, columns in (
        (error_ids & amended, names),
        (error_ids - amended, [name for name in names if name != "context"]),
    ):
        if not wanted:
            continue
        query = select(*(_logs.c[name] for name in columns)).where(_logs.c.id.in_(sorted(wanted)))
        for found in connection.execute(query).mappings():
            context = found.get("context")
            known = {**found, "context": context if isinstance(context, dict) else {}}
            rows[found["id"]] = _Row(**known | {"severity": Severity(found["severity"])})
    return rows


def _hold_groups(
    connection: Connection, wanted: Collection[str], new: Collection[ErrorRecord]
) -> tuple[dict[str, Group], list[str]]:
    """Groups, held until the transaction ends, and the ids of those that it has made, in order."""
    firsts: dict[str, ErrorRecord] = {}
    for record in new:
        firsts.setdefault(_group_of(record), record)
    known = groups.lock(connection, {*wanted, *firsts})
    missing = sorted(firsts.keys() - known.keys())
    made: set[str] = set()
    if missing:
        statement = _upsert(connection, _groups).on_conflict_do_nothing(index_elements=[_groups.c.id])
        values = [_first_values(group_id, firsts[group_id]) for group_id in missing]
        made = set(connection.execute(statement.returning(_groups.c.id), values).scalars())
        # Those that another writer has made in the meantime are found here as well.
        known |= groups.lock(connection, missing)
    return known, [group_id for group_id in firsts if group_id in made]


def _first_values(group_id: str, record: ErrorRecord) -> dict[str, Any]:
    return {
        "id": group_id,
        "fingerprint": record.fingerprint,
        "title": record.title,
        "culprit": record.culprit,
        "service": record.service,
        "environment": record.environment,
        "exception_type": record.exception_type,
        "severity": record.severity.value,
        "category": record.category,
        "status": Status.OPEN.value,
        "first_seen": record.timestamp,
        "last_seen": record.timestamp,
    }


def _first_seen(
    connection: Connection,
    rows: Iterable[_Row],
    known: Mapping[str, Group],
    instances: Iterable[Instance],
    now: datetime,
) -> dict[tuple[str, str], datetime]:
    """
    When the releases were first seen that matter to resolved groups; releases not seen before are noted.

    A release that the group has had last is noted already.
    """
    pairs = _releases_of(instances)
    compared: set[tuple[str, str]] = set()
    for row in rows:
        group = known[row.group_id]
        if row.release is None:
            continue
        if row.release != group.last_release:
            pairs.add((group.service, row.release))
        if group.status == Status.RESOLVED and group.resolved_in_release is not None:
            compared |= {(group.service, row.release), (group.service, group.resolved_in_release)}
    _note_releases(connection, pairs, now)
    if not compared:
        return {}
    key = tuple_(_releases.c.service, _releases.c.release)
    query = select(_releases).where(key.in_(sorted(compared)))
    return {(row.service, row.release): row.first_seen for row in connection.execute(query)}


def _note_releases(connection: Connection, pairs: Collection[tuple[str, str]], now: datetime) -> None:
    if pairs:
        values = [{"service": service, "release": release, "first_seen": now} for service, release in sorted(pairs)]
        connection.execute(_upsert(connection, _releases).on_conflict_do_nothing(), values)


def _number(connection: Connection, made: Collection[Group]) -> None:
    """Give the groups that this transaction has made their numbers."""
    if not made:
        return
    counters = schema.counters
    statement = _upsert(connection, counters).values(name="group_number", value=len(made))
    upsert = statement.on_conflict_do_update(
        index_elements=[counters.c.name], set_={"value": counters.c.value + statement.excluded.value}
    )
    last = connection.execute(upsert.returning(counters.c.value)).scalar_one()
    for number, group in enumerate(made, start=last - len(made) + 1):
        group.number = number


_AMENDED = ("severity", "category", "count", "handled", "mechanism", "context", "resolved", "resolved_at")
_save_row = (
    update(_logs)
    .where(_logs.c.id == bindparam("saved_id"))
    .values({name: bindparam(f"new_{name}", type_=_logs.c[name].type) for name in _AMENDED})
)

_save_count = update(_logs).where(_logs.c.id == bindparam("saved_id")).values(count=bindparam("new_count"))


def _save_rows(connection: Connection, rows: Iterable[_Row]) -> None:
    values = [{"saved_id": row.id, **{f"new_{name}": getattr(row, name) for name in _AMENDED}} for row in rows]
    if values:
        connection.execute(_save_row, values)


def _save_counts(connection: Connection, rows: Collection[_Row]) -> None:
    values = sorted((row.id, row.count) for row in rows)
    if values and bulk.is_for(connection):
        bulk.update(connection, _logs, ("id", "count"), values)
    elif values:
        connection.execute(_save_count, [{"saved_id": error_id, "new_count": count} for error_id, count in values])


def _add(connection: Connection, table: Table, counts: Counter[tuple[Any, ...]]) -> None:
    """Add to counts, by key in the order of the table's primary key."""
    keys = [column.name for column in table.primary_key]
    values = [dict(zip(keys, key, strict=True)) | {"count": n} for key, n in sorted(counts.items()) if n]
    if not values:
        return
    if bulk.is_for(connection):
        rows = [(*key, n) for key, n in sorted(counts.items()) if n]
        then = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET count = old.count + excluded.count"
        bulk.insert(connection, table, (*keys, "count"), rows, then)
        return
    statement = _upsert(connection, table)
    added = table.c.count + statement.excluded.count
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_={"count": added}), values)


def _advance(connection: Connection, batch: Batch, now: datetime) -> None:
    """Note how far a segment is stored, if it is stored just up to where the batch starts."""
    values = {"segment": batch.segment, "position": batch.position, "updated_at": now}
    statement = _upsert(connection, _progress).values(values)
    changes = {"position": statement.excluded.position, "updated_at": now}
    is_next = _progress.c.position == batch.start
    done = connection.execute(
        statement.on_conflict_do_update(index_elements=[_progress.c.segment], set_=changes, where=is_next)
    )
    if done.rowcount == 0:
        raise Overtaken(str(batch.segment))


def _upsert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _group_of(record: ErrorRecord) -> str:
    return ids.group_id(record.fingerprint, record.service, record.environment)


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
