"""Rows that other programs insert are taken in: grouped, counted, rung, each once; those of before never ring."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, insert, select

from tocsin import ids
from tocsin.alerts.limits import Limits
from tocsin.alerts.look import look
from tocsin.alerts.messages import details, own_frame
from tocsin.exporter import early
from tocsin.exporter.early import SERVICE, Early, finish, record_of
from tocsin.lifecycle import Trigger
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store import Store, adopt, groups, open_store, queries, schema, shapes
from tocsin.store.adopt import EarlyRow, Rows
from tocsin.store.alerts import last_error

NODE = (
    "AxiosError: Request failed with status code 504\n"
    "    at settle (/app/node_modules/axios/lib/core/settle.js:19:12)\n"
    "    at pushLead (/app/src/services/amocrm.ts:88:11)"
)
PYTHON = (
    "Traceback (most recent call last):\n"
    '  File "/srv/shop/orders.py", line 42, in create_order\n    phone = customer["phone"]\n'
    '  File "/usr/lib/python3.12/json/decoder.py", line 9, in loads\n    raise\n'
    "KeyError: 'phone'"
)
LONG_AGO = datetime(2025, 12, 20, 8, tzinfo=UTC)

logs = schema.error_logs.c


def write(store: Store, **values: Any) -> str:
    """Insert a row as another program does: the early columns alone; what is not named has its default."""
    row_id = ids.uuid7()
    row = {"id": row_id, "severity": "high", "category": "amocrm", "message": "Request failed"} | values
    store.write_now(lambda connection: connection.execute(insert(schema.error_logs).values(**row)) and None)
    return row_id


def write_before(store: Store, **values: Any) -> str:
    return write(store, group_id=schema.BEFORE, **{"timestamp": LONG_AGO, **values})


def take_in(store: Store) -> None:
    """What a server's drain does twice a second, until nothing is left to do."""
    chore = Early(lambda: store)
    chore()


def all_groups(store: Store) -> list[groups.Group]:
    found, _ = store.read_now(groups.list_groups)
    return found


def rows(store: Store) -> dict[str, Any]:
    def work(connection: Connection) -> dict[str, Any]:
        return {row["id"]: row for row in connection.execute(select(schema.error_logs)).mappings()}

    return store.read_now(work)


def ring(store: Store) -> list[tuple[int, str]]:
    """What the alerts make of the marks that stand: number and reason."""
    settings = Settings(database_url="", spool_dir="", alert_environments=("*",))
    looked = store.write_now(look, settings, Limits(seen_after_s=0), [("console", "here")])
    return [(number, reason.value) for number, reason in looked.rung]


def counted(store: Store) -> tuple[int, int, int, int]:
    """Errors by their rows, by their groups, by hours of groups, by hours of all."""

    def work(connection: Connection) -> tuple[int, int, int, int]:
        sums = (
            select(func.coalesce(func.sum(table.c.count), 0))
            for table in (schema.error_logs, schema.error_groups, schema.error_counts, schema.hourly_totals)
        )
        one, two, three, four = (int(connection.execute(query).scalar_one()) for query in sums)
        return one, two, three, four

    return store.read_now(work)


@pytest.fixture
def here(database_url: str) -> Any:
    """A store that is used without an event loop, as a drain uses it."""
    store = open_store(database_url)
    yield store
    store.close_now()


# What other programs insert.


def test_three_rows_of_one_error_are_one_group_and_one_ring(here: Store) -> None:
    """The same error with other numbers in its message, and the team's own words for it."""
    for lead in range(3):
        write(here, stack=NODE, message="Request failed with status code 504", category="stripe", severity="critical")
    assert ring(here) == []

    take_in(here)

    (group,) = all_groups(here)
    assert (group.title, group.category, group.severity) == (
        "AxiosError: Request failed with status code 504",
        "stripe",
        Severity.CRITICAL,
    )
    assert (group.service, group.environment, group.count) == (SERVICE, "development", 3)
    assert group.culprit is not None and "pushLead" in group.culprit
    assert {row["exception_type"] for row in rows(here).values()} == {"AxiosError"}
    assert ring(here) == [(group.number, "new")]
    take_in(here)
    assert ring(here) == []
    assert counted(here) == (3, 3, 3, 3)
    listed, _ = here.read_now(queries.list_errors, service=SERVICE)
    assert [one["service"] for one in listed] == [SERVICE] * 3


def test_a_row_keeps_what_its_writer_said(here: Store) -> None:
    """Only its group is added, and the type that its stack names."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    row_id = write(
        here, severity="low", category="payments", message="m\u202e", stack=NODE, timestamp=moment, context=[1]
    )
    before = dict(rows(here)[row_id])

    take_in(here)

    after = dict(rows(here)[row_id])
    (group,) = all_groups(here)
    assert after == before | {"group_id": group.id, "exception_type": "AxiosError"}
    assert "\u202e" not in group.title


@pytest.mark.parametrize(
    "odd",
    [
        {"message": ""},
        {"message": "\x01\x02 \u202e\U0001f600" * 10},
        {"message": "x" * 300_000, "stack": "y" * 300_000},
        {"stack": None, "context": None},
        {"context": "no object"},
        {"context": {"deep": ["x" * 200_000]}},
        {"resolved": None},
        {"timestamp": datetime(2100, 1, 1, tzinfo=UTC)},
        {"timestamp": datetime(1900, 1, 1, tzinfo=UTC)},
        {"environment": ""},
        {"category": ""},
        {"stack": 'Traceback (most recent call last):\n  File "/srv/shop/orders.py", line 1, in f\n    x\nKeyError: 1'},
    ],
    ids=str,
)
def test_whatever_a_row_holds_it_is_taken_in(here: Store, odd: dict[str, Any]) -> None:
    """And shown before that as well as after."""
    row_id = write(here, **odd)
    listed, _ = here.read_now(queries.list_errors)
    assert [row["id"] for row in listed] == [row_id]
    shapes.as_json(shapes.error_list(listed, None))

    take_in(here)

    (group,) = all_groups(here)
    now = datetime.now(UTC)
    assert datetime(1970, 1, 1, tzinfo=UTC) <= group.first_seen <= group.last_seen <= now
    assert group.title
    assert here.read_now(queries.get_error, row_id)["group"] == group.number
    assert counted(here) == (1, 1, 1, 1)
    assert len(ring(here)) == 1


@pytest.mark.parametrize(
    ("stack", "culprit", "place"),
    [
        (NODE, "services/amocrm in pushLead", "/app/src/services/amocrm.ts:88"),
        (PYTHON, "shop.orders in create_order", "/srv/shop/orders.py:42"),
    ],
)
def test_a_row_rings_with_the_place_that_its_stack_names(here: Store, stack: str, culprit: str, place: str) -> None:
    """As any other error does; the row itself is not touched for it."""
    row_id = write(here, stack=stack, message="password=hunter22", context={"leadId": 1})

    take_in(here)

    (group,) = all_groups(here)
    assert group.culprit == culprit
    error = here.read_now(last_error, group)
    shown = details(group, error, None, Settings(database_url="", spool_dir=""), datetime.now(UTC)).plain
    assert f"{culprit} {place}" in shown
    assert "hunter22" not in shown
    assert rows(here)[row_id]["context"] == {"leadId": 1}


@pytest.mark.parametrize("stack", [None, "", "no stack", "x" * 300_000])
def test_a_row_without_frames_rings_without_a_place(here: Store, stack: str | None) -> None:
    write(here, stack=stack)

    take_in(here)

    (group,) = all_groups(here)
    assert own_frame(here.read_now(last_error, group)) is None


def test_a_row_that_says_where_but_not_what_is_named_by_that(here: Store) -> None:
    for path in ("/api/landing", "/api/landing", "/api/orders"):
        write(here, message="", context={"endpoint": path, "method": "POST"})

    take_in(here)

    assert sorted((group.culprit, group.count) for group in all_groups(here)) == [
        ("POST /api/landing", 2),
        ("POST /api/orders", 1),
    ]


def test_a_row_that_comes_resolved_rings_nobody(here: Store) -> None:
    """Its writer has dealt with it."""
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    write(here, resolved=True, resolved_at=moment, timestamp=moment - timedelta(hours=1))

    take_in(here)

    (group,) = all_groups(here)
    assert (group.status, group.resolved_at) == ("resolved", moment)
    assert ring(here) == []


def test_a_row_of_a_resolved_group_brings_it_back(here: Store) -> None:
    write(here)
    take_in(here)
    (group,) = all_groups(here)
    assert len(ring(here)) == 1
    here.write_now(groups.act, group.number, Trigger.RESOLVE, by="@anna", via="cli")
    late = write(here, timestamp=LONG_AGO)
    take_in(here)
    assert ring(here) == []
    here.write_now(groups.settle_rows)
    assert rows(here)[late]["resolved"]

    write(here, timestamp=datetime.now(UTC) + timedelta(seconds=1))
    take_in(here)

    assert ring(here) == [(group.number, "regressed")]


@pytest.mark.parametrize("which", list(Rows))
def test_a_row_that_cannot_be_grouped_holds_up_no_other(here: Store, which: Rows) -> None:
    """It is set aside once, stays as it was, and is not tried again."""
    make = write if which is Rows.UNTAKEN else write_before
    good = [make(here, message=f"kind {kind}") for kind in "abc"]
    bad = make(here, message="bad", severity="high")
    here.write_now(_refuse_groups_of, bad)

    take_in(here)

    found = rows(here)
    assert found[bad]["group_id"] == schema.REFUSED
    assert all(found[one]["group_id"] not in (None, schema.BEFORE, schema.REFUSED) for one in good)
    assert here.read_now(queries.get_error, bad)["group"] is None
    assert not here.read_now(adopt.waiting, which)


def _refuse_groups_of(connection: Connection, row_id: str) -> None:
    """A rule of the team's own that refuses one row a group, as a trigger or a CHECK may."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(
            "CREATE TRIGGER refusing BEFORE UPDATE ON error_logs"
            f" WHEN NEW.id = '{row_id}' AND NEW.group_id <> 'refused' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        return
    connection.exec_driver_sql(
        "CREATE FUNCTION refusing() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF NEW.id = '{row_id}' AND NEW.group_id <> 'refused' THEN RAISE EXCEPTION 'no'; END IF;"
        " RETURN NEW; END $$"
    )
    connection.exec_driver_sql(
        "CREATE TRIGGER refusing BEFORE UPDATE ON error_logs FOR EACH ROW EXECUTE FUNCTION refusing()"
    )


def test_two_servers_take_each_row_once(database_url: str) -> None:
    """Whoever holds a row has it; the other goes on with the next."""
    stores = [open_store(database_url) for _ in range(2)]
    for number in range(300):
        write(stores[0], message=f"kind {'abc'[number % 3]}")
    together = threading.Barrier(2)

    def serve(store: Store) -> None:
        together.wait()
        chore = Early(lambda: store)
        while store.read_now(adopt.waiting, Rows.UNTAKEN):
            chore()

    threads = [threading.Thread(target=serve, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counted(stores[0]) == (300, 300, 300, 300)
    assert sorted(group.count for group in all_groups(stores[0])) == [100, 100, 100]
    for store in stores:
        store.close_now()


def test_a_database_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chore raises nothing: the drain beside it has work of its own."""
    away = open_store("postgresql://postgres@127.0.0.1:1/none")
    chore = Early(lambda: away)

    for _ in range(3):
        chore()

    away.close_now()


# What stood there before.


def test_rows_of_before_are_grouped_and_never_ring(here: Store) -> None:
    """Counts, hours, first and last are as if tocsin had been there; rows are as they were."""
    kept = [
        write_before(here, stack=NODE, timestamp=LONG_AGO + timedelta(hours=hour), environment="production")
        for hour in range(5)
    ]
    write_before(here, message="connect ECONNREFUSED 127.0.0.1:5432", severity="critical", category="database")
    before = rows(here)

    take_in(here)

    by_count = {group.count: group for group in all_groups(here)}
    group = by_count[5]
    assert (group.first_seen, group.last_seen) == (LONG_AGO, LONG_AGO + timedelta(hours=4))
    assert (group.status, group.severity, group.last_error_id) == ("open", Severity.HIGH, kept[-1])
    assert by_count[1].severity == Severity.CRITICAL
    assert ring(here) == []
    assert counted(here) == (6, 6, 6, 6)
    after = rows(here)
    changed = {"group_id", "exception_type"}
    for row_id, row in before.items():
        assert {k: v for k, v in row.items() if k not in changed} == {
            k: v for k, v in after[row_id].items() if k not in changed
        }
    hours = dict(here.read_now(queries.group_hours, [group.id], 6, LONG_AGO + timedelta(hours=5))[group.id])
    assert list(hours.values()) == [1, 1, 1, 1, 1, 0]


RESOLVED = {"resolved": True, "resolved_at": LONG_AGO + timedelta(days=2)}


@pytest.mark.parametrize(
    ("states", "status", "resolved_at"),
    [
        ([{"resolved": True, "resolved_at": LONG_AGO}, RESOLVED], "resolved", RESOLVED["resolved_at"]),
        ([RESOLVED, {"resolved": True}], "resolved", RESOLVED["resolved_at"]),
        ([{"resolved": True}], "resolved", LONG_AGO),
        ([RESOLVED, {"resolved": False}], "open", None),
        ([{"resolved": None}, RESOLVED], "open", None),
        ([RESOLVED, {"resolved": None}, RESOLVED], "open", None),
    ],
    ids=str,
)
@pytest.mark.parametrize("at_once", [500, 1])
def test_a_group_is_resolved_when_all_its_rows_of_before_are(
    here: Store, states: list[dict[str, Any]], status: str, resolved_at: Any, at_once: int, monkeypatch: Any
) -> None:
    """However its rows fall into batches."""
    monkeypatch.setattr(early, "BATCH", at_once)
    for state in states:
        write_before(here, **state)

    finish(here)

    (group,) = all_groups(here)
    assert (group.status, group.resolved_at, group.count) == (status, resolved_at, len(states))
    assert not group.rows_pending


@pytest.mark.parametrize(("state", "reason"), [({}, "new"), (RESOLVED, "regressed")])
def test_a_new_row_in_a_group_of_before_rings(here: Store, state: dict[str, Any], reason: str) -> None:
    """Nobody was told of it yet; or they were told that it is over."""
    write_before(here, **state)
    take_in(here)
    assert ring(here) == []

    write(here)
    take_in(here)

    (group,) = all_groups(here)
    assert (group.status, group.count) == ("open", 2)
    assert ring(here) == [(group.number, reason)]


def test_what_a_person_said_stands_when_rows_of_before_follow(here: Store) -> None:
    """Who resolves a group means all that happened until then, also what is grouped later."""
    write(here)
    take_in(here)
    (group,) = all_groups(here)
    here.write_now(groups.act, group.number, Trigger.RESOLVE, by="@anna", via="cli")
    old = write_before(here)

    take_in(here)

    (group,) = all_groups(here)
    assert (group.status, group.resolved_by, group.count) == ("resolved", "@anna", 2)
    assert here.read_now(queries.get_error, old)["resolved"]
    here.write_now(groups.settle_rows)
    assert rows(here)[old]["resolved"]


def test_finishing_tells_how_far_it_is_and_doing_it_again_is_harmless(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early, "_SAY_EVERY_S", 0.0)
    monkeypatch.setattr(early, "BATCH", 10)
    for number in range(25):
        write_before(here, timestamp=LONG_AGO + timedelta(minutes=number))
    write(here)
    said: list[str] = []

    finish(here, say=said.append)
    finish(here, say=said.append)

    assert counted(here) == (26, 26, 26, 26)
    assert any("20 of 25, 80 %" in line for line in said)
    assert [line for line in said if line.startswith("grouped")] == [
        line for line in said if "grouped 1 rows" in line or "grouped 25 rows" in line
    ]


def test_rows_alike_are_counted_together_and_lose_nothing(here: Store) -> None:
    """Groups, hours and totals are the same as by each row alone."""
    for number in range(60):
        write_before(
            here,
            message=("one", "two")[number % 2],
            timestamp=LONG_AGO + timedelta(minutes=7 * number % 190),
            severity=("low", "high")[number // 3 % 2],
            category=("amocrm", "unknown")[number // 5 % 2],
            count=1 + number % 3,
            resolved=(number % 2 == 1),
            resolved_at=LONG_AGO + timedelta(days=number % 11) if number % 2 else None,
        )
    before = rows(here)

    finish(here)

    assert {group.count for group in all_groups(here)} == {sum(row["count"] for row in rows(here).values()) // 2}
    assert len(set(counted(here))) == 1
    for group in all_groups(here):
        its = [row for row in rows(here).values() if row["group_id"] == group.id]
        assert group.first_seen == min(row["timestamp"] for row in its)
        assert group.last_seen == max(row["timestamp"] for row in its)
        assert group.resolved_at == max((row["resolved_at"] for row in its if row["resolved_at"]), default=None)
        assert before[group.last_error_id or ""]["timestamp"] == group.last_seen
        seen = Counter(
            row["timestamp"].replace(minute=0, second=0, microsecond=0) for row in its for _ in range(row["count"])
        )
        hours = dict(here.read_now(queries.group_hours, [group.id], 5, LONG_AGO + timedelta(hours=4))[group.id])
        assert {hour: n for hour, n in hours.items() if n} == dict(seen)


# What is judged of a row.


def row(**values: Any) -> EarlyRow:
    known: dict[str, Any] = {
        "id": ids.uuid7(),
        "timestamp": LONG_AGO,
        "severity": "low",
        "category": "stripe",
        "message": "card declined",
        "stack": None,
        "environment": "production",
        "resolved_at": None,
        "service": None,
        "exception_type": None,
        "count": 1,
        "place": None,
    }
    return EarlyRow(**{**known, **values})


def test_the_teams_words_stand_and_only_what_is_missing_is_judged() -> None:
    assert (record_of(row(), Rows.UNTAKEN).severity, record_of(row(), Rows.UNTAKEN).category) == ("low", "stripe")
    stack = 'Traceback (most recent call last):\n  File "/srv/shop/db.py", line 1, in f\n    x\nasyncpg.exceptions.X: m'
    judged = record_of(row(severity="loud", category="", stack=stack), Rows.UNTAKEN)
    assert judged.category == "database"
    assert judged.severity in tuple(Severity)


def test_a_secret_in_a_message_gets_into_no_title() -> None:
    """Titles travel further than rows do."""
    found = record_of(row(message="cannot log in: password=hunter22"), Rows.UNTAKEN)

    assert "hunter22" not in found.title
