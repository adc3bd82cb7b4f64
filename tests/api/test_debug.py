"""The debug API, as dashboards and scripts see it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.api.conftest import HOST, TOKENS, Put, client_of, settings_with
from tests.conftest import ErrorFactory
from tests.failed_jobs import failed_job
from tests.waiting import aeventually
from tocsin import clock
from tocsin.api import create_app
from tocsin.api.calls import Right
from tocsin.model import Batch, DependencyState, Instance
from tocsin.store import Store, alerts, errors, groups, open_store, schema
from tocsin.store.engine import SqliteStore

API = "/api/debug"


# Health


async def test_health_has_the_keys_that_dashboards_read(client: httpx.AsyncClient, put: Put) -> None:
    entry = await put(count=3)

    answer = await client.get(f"{API}/health")

    assert answer.status_code == 200
    health = answer.json()
    assert health["status"] == "ok"
    assert set(health["server"]) == {
        *("uptime", "isShuttingDown", "activeRequests", "memory", "pythonVersion", "platform", "env"),
    }
    assert health["server"]["isShuttingDown"] is False
    assert health["server"]["activeRequests"] == 1
    assert all(text.endswith(" MB") for text in health["server"]["memory"].values())
    assert set(health["server"]["memory"]) == {"used", "total", "external"}
    off = dict.fromkeys(("redis", "telegram", "email", "webhook"), "off")
    assert health["services"] == {"database": "connected"} | off
    assert health["recentErrors"]["count"] == 3
    assert health["recentErrors"]["last"]["id"] == entry.id
    assert datetime.fromisoformat(health["timestamp"]).tzinfo is not None


async def test_health_of_a_quiet_hour(client: httpx.AsyncClient, put: Put) -> None:
    await put(timestamp=clock.now() - timedelta(hours=2))

    assert (await client.get(f"{API}/health")).json()["recentErrors"] == {"count": 0, "last": None}


async def test_a_table_that_somebody_dropped_is_named(client: httpx.AsyncClient, store: Store) -> None:
    """Nobody shall look for an outage."""
    await store.write(schema.alerts.drop)

    answer = await client.get(f"{API}/alerts")

    assert answer.status_code == 503
    assert "alerts" in answer.json()["error"]
    assert "tocsin check" in answer.json()["error"]


async def test_health_is_an_error_while_the_database_is_away(tmp_path: Path) -> None:
    """It says which part, as 503; liveness does not care, readiness does."""
    nowhere = SqliteStore(f"sqlite:///{tmp_path}")  # a folder is no database
    app = create_app(settings_with(), store=nowhere)
    async with client_of(app, token=TOKENS["full"]) as client:
        health = await client.get(f"{API}/health")
        calls = [await client.get(f"{API}/{name}") for name in ("errors", "errors/stats", "groups", "alerts")]
        probes = [(await client.get(path)).status_code for path in ("/livez", "/readyz")]
    await nowhere.close()

    assert health.status_code == 503
    assert (health.json()["status"], health.json()["services"]["database"]) == ("error", "error")
    assert [call.status_code for call in calls] == [503] * 4
    assert all(call.json()["success"] is False and "Traceback" not in call.text for call in calls)
    assert probes == [200, 503]


async def test_what_a_service_is_without_degrades_health(client: httpx.AsyncClient, store: Store) -> None:
    """But it is no 503: tocsin itself needs none of it."""
    now = clock.now()
    values: dict[str, Any] = {"service": "shop", "environment": "production", "is_optional": True, "since": now}
    living = Instance(id="a", service="shop", environment="production", release=None, host="h", pid=1, started_at=now)

    async def told(**away: bool) -> httpx.Response:
        states = [
            DependencyState(name=name, instance_id="a", is_away=is_away, **values) for name, is_away in away.items()
        ]
        await store.write(errors.write_batch, Batch(entries=[], instance=living, facts=[*states]), now)
        return await client.get(f"{API}/health")

    well = (await told(redis=False, crm=False)).json()
    ill = await told(crm=True)
    worse = (await told(redis=True, database=True, crm=False)).json()

    assert (well["status"], well["services"]["redis"], well["services"]["crm"]) == ("ok", "connected", "connected")
    assert (ill.status_code, ill.json()["status"]) == (200, "degraded")
    assert (ill.json()["services"]["redis"], ill.json()["services"]["crm"]) == ("connected", "error")
    assert (worse["services"]["redis"], worse["services"]["database"], worse["services"]["crm"]) == (
        *("error", "error", "connected"),
    )


class Hanging(SqliteStore):
    """A database that never answers."""

    async def read(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.Event().wait()

    async def write(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.Event().wait()


async def test_health_does_not_hang_with_the_database(tmp_path: Path) -> None:
    app = create_app(settings_with(), store=Hanging(f"sqlite:///{tmp_path}/x.db"))
    async with client_of(app, token=TOKENS["full"]) as client:
        begun = asyncio.get_running_loop().time()
        answers = await asyncio.gather(client.get(f"{API}/health"), client.get(f"{API}/health"), client.get("/readyz"))
        took_s = asyncio.get_running_loop().time() - begun
    app.state.house.probe.cancel()

    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert took_s < 4


class Ringing:
    """Alerts that say what a test is about."""

    def __init__(self, **state: Any) -> None:
        self._state = {"leader": True, "channels": [], "bot": {"state": "off", "problem": None}} | state
        self.woken = 0

    def state(self) -> dict[str, Any]:
        return self._state

    def wake(self) -> None:
        self.woken += 1


def channel(**values: Any) -> dict[str, Any]:
    return {"channel": "telegram", "target": "-100", "parked_reason": None, "last_error": None} | values


@pytest.mark.parametrize(
    ("ringing", "status", "telegram"),
    [
        (Ringing(channels=[channel()]), "ok", "connected"),
        (Ringing(channels=[channel(last_error="502")]), "degraded", "error"),
        (Ringing(channels=[channel(parked_reason="the chat is gone")]), "degraded", "error"),
        (Ringing(bot={"state": "unreachable", "problem": "no route"}), "degraded", "error"),
        (None, "degraded", "error"),
    ],
)
async def test_a_server_whose_alerts_do_not_ring_is_degraded(
    store: Store, ringing: Ringing | None, status: str, telegram: str
) -> None:
    """A monitor that asks for health hears of it even though nothing else can tell."""
    app = create_app(settings_with(telegram_token="1:x"), store=store, alerts=ringing)
    app.state.house.expects_alerts = True
    async with client_of(app, token=TOKENS["full"]) as client:
        answer = await client.get(f"{API}/health")

    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["services"]["telegram"]) == (status, telegram)


@pytest.mark.parametrize("failing", ["telegram", "email", "webhook"])
async def test_each_way_to_people_is_named(store: Store, failing: str) -> None:
    """One reader's address that is refused says nothing of the others."""
    ways = [channel(channel=name, target=name) for name in ("telegram", "email", "webhook")]
    refused = channel(channel=failing, target="b", parked_reason="550 5.1.1 No such user here")
    settings = settings_with(
        telegram_token="1:x", smtp_url="smtp://h", email_to=("a@shop.example",), webhook_url="https://h"
    )
    app = create_app(settings, store=store, alerts=Ringing(channels=[*ways, refused]))
    async with client_of(app, token=TOKENS["full"]) as client:
        services = (await client.get(f"{API}/health")).json()["services"]

    words = {name: services[name] for name in ("telegram", "email", "webhook")}
    assert words == dict.fromkeys(words, "connected") | {failing: "error"}


async def test_a_database_without_tables_is_not_ready(empty_database_url: str) -> None:
    """The calls say what to do, and the probes of a load balancer say no."""
    app = create_app(settings_with(database_url=empty_database_url))
    async with client_of(app, token=TOKENS["full"]) as client:
        ready = await client.get("/readyz")
        listed = await client.get(f"{API}/errors")
    await app.state.house.store.close()

    assert (ready.status_code, listed.status_code) == (503, 503)


# Errors


async def test_errors_are_listed_with_the_early_tables_names(client: httpx.AsyncClient, put: Put) -> None:
    entry = await put(context={"user_id": "u7"}, trace_id="ab" * 16)

    listed = (await client.get(f"{API}/errors")).json()

    assert (listed["success"], listed["count"], listed["next"]) == (True, 1, None)
    (row,) = listed["errors"]
    assert row["id"] == entry.id
    early = {"id", "timestamp", "severity", "category", "message", "stack", "context", "environment", "resolved"}
    assert early | {"resolved_at", "created_at", "group", "count", "service", "trace_id"} <= set(row)
    assert row["context"] == {"user_id": "u7"}
    assert (await client.get(f"{API}/errors/{entry.id}")).json() == {"success": True, "error": row}


async def test_pages_of_errors_join(client: httpx.AsyncClient, put: Put) -> None:
    for number in range(5):
        await put(message=str(number))

    first = (await client.get(f"{API}/errors", params={"limit": 3})).json()
    second = (await client.get(f"{API}/errors", params={"limit": 3, "before": first["next"]})).json()

    assert [row["message"] for row in first["errors"] + second["errors"]] == ["4", "3", "2", "1", "0"]
    assert second["next"] is None


async def test_filters_left_empty_do_not_filter(client: httpx.AsyncClient, put: Put) -> None:
    """As the design writes them: `category=&severity=`."""
    await put()
    query = "limit=50&category=&severity=&resolved=&service=&environment=&group=&q=&since=&before="

    assert (await client.get(f"{API}/errors?{query}")).json()["count"] == 1
    assert (await client.get(f"{API}/errors?severity=low")).json()["count"] == 0
    assert (await client.get(f"{API}/errors?resolved=false&group=1&since=1h&q=PHONE")).json()["count"] == 1
    assert (await client.get(f"{API}/errors?something=else")).status_code == 200


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("errors?limit=0", "limit"),
        ("errors?limit=501", "limit"),
        ("errors?limit=ten", "limit"),
        ("errors?limit=-1", "limit"),
        ("errors?limit=%D9%A3", "limit"),
        ("errors?severity=fatal", "severity"),
        ("errors?resolved=maybe", "resolved"),
        ("errors?group=x", "group"),
        ("errors?group=99999999999", "group"),
        ("errors?since=yesterday", "since"),
        ("errors?before=AAAA", "before"),
        ("errors?q=%00", "q"),
        ("errors?category=" + "x" * 501, "category"),
        ("errors/stats?hours=0", "hours"),
        ("errors/stats?hours=1e3", "hours"),
        ("groups?status=closed", "status"),
        ("groups?before=AAAA", "before"),
        ("alerts?before=AAAA", "before"),
        ("alerts?limit=x", "limit"),
    ],
)
async def test_a_wrong_value_is_named(client: httpx.AsyncClient, path: str, field: str) -> None:
    answer = await client.get(f"{API}/{path}")

    assert answer.status_code == 400
    assert answer.json()["success"] is False
    assert answer.json()["error"].startswith(f"{field}: ")


@pytest.mark.parametrize("since", ["{:%Y-%m-%dT%H:%M:%S}+00:00", "{:%Y-%m-%dT%H:%M:%S}Z", "{:%Y-%m-%d}", "2h", "1d"])
async def test_since_takes_what_people_write(client: httpx.AsyncClient, put: Put, since: str) -> None:
    """Also an unescaped plus, which arrives as a space."""
    await put()

    answer = await client.get(f"{API}/errors?since=" + since.format(clock.now() - timedelta(minutes=1)))

    assert answer.json()["count"] == 1


async def test_statistics_have_the_keys_that_dashboards_read(client: httpx.AsyncClient, put: Put) -> None:
    await put(count=2)

    answer = (await client.get(f"{API}/errors/stats")).json()

    assert (answer["success"], answer["period"]) == (True, "24 hours")
    stats = answer["stats"]
    assert set(stats) == {"total", "by_severity", "by_category", "by_service", "by_hour", "unresolved"}
    assert (stats["total"], stats["unresolved"]) == (2, 2)
    assert set(stats["by_hour"][0]) == {"hour", "count"}
    assert sum(hour["count"] for hour in stats["by_hour"]) == 2


# Acting


async def test_an_errors_id_resolves_its_group(client: httpx.AsyncClient, put: Put, store: Store) -> None:
    """With all its errors so far; who did it stands in the history."""
    first = await put()
    await put()

    answer = await client.post(f"{API}/errors/{first.id}/resolve")

    assert answer.status_code == 200
    assert answer.json()["success"] is True
    assert "#1" in answer.json()["message"]
    rows = (await client.get(f"{API}/errors")).json()["errors"]
    assert [row["resolved"] for row in rows] == [True, True]
    assert all(row["resolved_at"] for row in rows)
    whole = (await client.get(f"{API}/groups/1")).json()
    assert (whole["group"]["status"], whole["group"]["resolved_by"]) == ("resolved", "token: full")
    assert [(act["action"], act["via"]) for act in whole["history"]] == [("resolve", "api")]


async def test_the_rows_follow_behind_the_answer(client: httpx.AsyncClient, put: Put, store: Store) -> None:
    """Also where no server is at work on the database."""
    await put()
    await client.post(f"{API}/groups/1/resolve")

    async def is_settled() -> bool:
        return not (await store.read(groups.by_number, 1)).rows_pending

    await aeventually(is_settled)


@pytest.mark.parametrize("error_id", ["x", "0190d0c0-0000-7000-8000-000000000000", "%00"])
async def test_what_is_not_there_cannot_be_resolved(client: httpx.AsyncClient, error_id: str) -> None:
    answer = await client.post(f"{API}/errors/{error_id}/resolve")

    assert answer.status_code == 404
    assert answer.json()["success"] is False


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("resolve", "resolved"),
        ("acknowledge", "acknowledged"),
        ("mute", "muted"),
        ("ignore", "ignored"),
        ("reopen", "open"),
    ],
)
async def test_every_action_on_a_group(client: httpx.AsyncClient, put: Put, action: str, status: str) -> None:
    await put()

    answer = await client.post(f"{API}/groups/1/{action}")

    assert answer.status_code == 200
    assert answer.json()["group"]["status"] == status
    assert (await client.get(f"{API}/groups?status={status}")).json()["count"] == 1


async def test_an_action_that_makes_no_sense_is_a_conflict(client: httpx.AsyncClient, put: Put) -> None:
    await put()
    await client.post(f"{API}/groups/1/resolve")

    answer = await client.post(f"{API}/groups/1/acknowledge")

    assert answer.status_code == 409
    assert "resolved" in answer.json()["error"]


@pytest.mark.parametrize(
    ("how", "hours"),
    [
        ({"json": {"for": "2h"}}, 2),
        ({"params": {"for": "1d"}}, 24),
        ({"data": {"for": "30m"}}, 0.5),
        ({}, 1),
    ],
)
async def test_a_mute_lasts_as_long_as_was_said(
    client: httpx.AsyncClient, put: Put, how: dict[str, Any], hours: float
) -> None:
    await put()

    group = (await client.post(f"{API}/groups/1/mute", **how)).json()["group"]

    left = datetime.fromisoformat(group["muted_until"]) - clock.now()
    assert timedelta(hours=hours) - timedelta(minutes=1) < left <= timedelta(hours=hours)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"json": {"for": "soon"}}, 400),
        ({"json": {"for": 7}}, 400),
        ({"json": ["2h"]}, 400),
        ({"content": b"{"}, 400),
        ({"content": b"[" * 100_000}, 400),
        ({"content": b"\xff"}, 400),
        ({"content": b" " * (2**20 + 1)}, 413),
        ({"params": {"for": "9999w"}}, 400),
    ],
)
async def test_a_wrong_body_is_refused(client: httpx.AsyncClient, put: Put, how: dict[str, Any], status: int) -> None:
    await put()

    answer = await client.post(f"{API}/groups/1/mute", **how)

    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert (await client.get(f"{API}/groups/1")).json()["group"]["status"] == "open"


async def test_a_large_body_is_refused_also_where_none_is_read(client: httpx.AsyncClient, put: Put) -> None:
    await put()

    assert (await client.post(f"{API}/groups/1/resolve", content=b" " * (2**20 + 1))).status_code == 413
    assert (await client.post(f"{API}/groups/1/resolve", content=b" " * 2**20)).status_code == 200


async def test_a_server_that_is_ahead_resolves_at_the_databases_time(
    postgres_url: str, error: ErrorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the errors of the next minutes would count as resolved, and ring nobody (SQLite's clock is ours)."""
    store = open_store(postgres_url)
    app = create_app(settings_with(), store=store)
    true_now = clock.now()
    await store.write(errors.write_batch, Batch(entries=[error(timestamp=true_now)]), true_now)
    monkeypatch.setattr(clock, "now", lambda: true_now + timedelta(minutes=5))

    async with client_of(app, token=TOKENS["full"]) as client:
        await client.post(f"{API}/groups/1/resolve")

    resolved_at = (await store.read(groups.by_number, 1)).resolved_at
    assert resolved_at is not None
    assert resolved_at < true_now + timedelta(minutes=1)
    await app.state.house.finish(5)
    await store.close()


@pytest.mark.parametrize("number", ["0", "99", "x", "-1", "1.5", "99999999999999999999", "0" * 5000, "%C2%B2"])
async def test_a_group_that_is_not_there(client: httpx.AsyncClient, number: str) -> None:
    for answer in (await client.get(f"{API}/groups/{number}"), await client.post(f"{API}/groups/{number}/resolve")):
        assert answer.status_code == 404
        assert answer.json()["success"] is False


async def test_json_is_read_as_curl_sends_it(client: httpx.AsyncClient, put: Put) -> None:
    """`curl -d '{"for": "3h"}'` says that it sends a form."""
    await put()
    form = {"content-type": "application/x-www-form-urlencoded"}

    answer = await client.post(f"{API}/groups/1/mute", content=b'{"for": "3h"}', headers=form)

    assert answer.status_code == 200
    until = datetime.fromisoformat((await client.get(f"{API}/groups/1")).json()["group"]["muted_until"])
    assert until > clock.now() + timedelta(hours=2)


async def test_an_act_wakes_the_alerts(store: Store, put: Put) -> None:
    """So that the message in the chat says at once who did it."""
    await put()
    ringing = Ringing()
    app = create_app(settings_with(), store=store, alerts=ringing)
    async with client_of(app, token=TOKENS["full"]) as client:
        await client.post(f"{API}/groups/1/resolve")
    await app.state.house.finish(5)

    assert ringing.woken == 1


# The rest


async def test_a_queue_that_nobody_watches_is_empty(client: httpx.AsyncClient) -> None:
    answer = (await client.get(f"{API}/queue")).json()

    names = ("active", "waiting", "failed", "completed", "delayed", "totalKeys")
    assert answer == {
        "success": True,
        "queue": {"name": None} | dict.fromkeys(names, 0),
        "queues": [],
        "jobs": {"failed": 0},
    }


async def test_memory_is_told_in_numbers(client: httpx.AsyncClient) -> None:
    answer = (await client.get(f"{API}/memory")).json()

    assert answer["success"] is True
    assert {"rss", "python"} <= set(answer["memory"])
    for figure in answer["memory"].values():
        assert set(figure) == {"bytes", "mb", "description"}
        assert figure["mb"] == round(figure["bytes"] / 2**20, 1)
    assert answer["memory"]["rss"]["bytes"] > 10 * 2**20


async def test_memory_of_the_services_is_told_as_they_last_reported(client: httpx.AsyncClient, store: Store) -> None:
    """With limit and trend; what a process has not said is null, and nothing but numbers is said."""
    whole = instance("a", memory_bytes=98 * 2**20, memory_limit_bytes=120 * 2**20, memory_trend=-(2**20))
    for number, one in enumerate([whole, instance("b")]):
        await store.write(
            errors.write_batch, Batch(entries=[], instances=[one]), clock.now() - timedelta(seconds=number)
        )

    first, second = (await client.get(f"{API}/memory")).json()["instances"]

    assert {name: one if name == "percent" else one["bytes"] for name, one in first["memory"].items()} == {
        "rss": 98 * 2**20,
        "limit": 120 * 2**20,
        "trend": -(2**20),
        "percent": 81.7,
    }
    assert second["memory"] == dict.fromkeys(("rss", "limit", "trend", "percent"))


def instance(service: str, **values: Any) -> Instance:
    return Instance(
        id=service,
        service=service,
        environment="production",
        release=None,
        host="web",
        pid=7,
        started_at=clock.now(),
        **values,
    )


async def test_alerts_come_with_their_deliveries(client: httpx.AsyncClient, put: Put, store: Store) -> None:
    await put()
    group = await store.read(groups.by_number, 1)
    now = clock.now()

    def ring(connection: Any) -> None:
        alert_id = alerts.add_alert(connection, reason="new", severity=group.severity, now=now, group=group)
        assert alert_id is not None
        alerts.add_deliveries(connection, alert_id, [("telegram", "-100")], priority=2, now=now)

    await store.write(ring)

    answer = (await client.get(f"{API}/alerts")).json()

    assert (answer["success"], answer["count"], answer["next"]) == (True, 1, None)
    (alert,) = answer["alerts"]
    assert (alert["group"], alert["reason"]) == (1, "new")
    assert [(one["channel"], one["target"], one["state"]) for one in alert["deliveries"]] == [
        ("telegram", "-100", "pending")
    ]


# Every call


def calls_of(app: Starlette) -> list[Any]:
    return list(app.state.calls)


async def test_the_description_is_true(client: httpx.AsyncClient, app: Starlette, put: Put, store: Store) -> None:
    """Every path of it answers, with all the keys that it promises."""
    entry = await put()
    await store.write(errors.write_batch, Batch(entries=[], facts=[failed_job(), failed_job()]), clock.now())
    document = (await client.get(f"{API}/openapi.json")).json()
    schemas = document["components"]["schemas"]

    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        number = "2" if path.endswith("/discard") else "1"  # of the job that was not done before
        address = path.replace("{id}", entry.id).replace("{n}", number).replace("{name}", "nightly?every=1d")
        for method, operation in operations.items():
            content = {"message": "boom"} if address == f"{API}/errors" else {}
            answer = await client.request(method, address, json=content if method == "post" else None)
            status = "409" if path.endswith("/retry") else "200"
            assert str(answer.status_code) == status, (method, address)
            promised = operation["responses"][status]["content"]["application/json"]["schema"]
            check(answer.json(), promised, schemas, address)
    described = {(method.upper(), path) for path, of in document["paths"].items() for method in of}
    assert described == {(call.method, call.path) for call in calls_of(app) if not call.is_page}


def check(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> None:
    """The part of JSON Schema that the description uses."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        if value is None:
            assert {"type": "null"} in schema["anyOf"], where
            return
        check(value, schema["anyOf"][0], schemas, where)
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "number": (int, float),
    }
    if kind := schema.get("type"):
        assert isinstance(value, kinds[kind]), f"{where} is {value!r}, not {kind}"
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], where
    for name in schema.get("required", ()):
        assert name in value, f"{where}.{name}"
    for name, of in schema.get("properties", {}).items():
        if name in value:
            check(value[name], of, schemas, f"{where}.{name}")
    for one in value if schema.get("type") == "array" else ():
        check(one, schema.get("items", {}), schemas, where)


async def test_nothing_that_fails_inside_is_told(put: Put, tmp_path: Path) -> None:
    """No text of an exception, no path, no SQL: on every call that reads the database."""

    class Broken(SqliteStore):
        async def read(self, work: Any, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("SELECT secret FROM /etc/passwd")

        write = read

    app = create_app(settings_with(), store=Broken(f"sqlite:///{tmp_path}/x.db"))
    async with client_of(app, token=TOKENS["full"]) as client:
        for call in calls_of(app):
            if call.right in (Right.NONE, Right.INGEST):
                continue
            path = call.path.replace("{n}", "1").replace("{id}", "1").replace("{name}", "nightly")
            answer = await client.request(call.method, path)
            assert answer.status_code in (200, 500, 503), call.path
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    for path in ("/nope", f"{API}", f"{API}/nope", f"{API}/errors/1/2/3", "/admin/debug/static/../app.py"):
        answer = await client.get(path)
        assert answer.status_code == 404, path
        assert answer.json()["success"] is False
    for method in ("DELETE", "PUT", "PATCH", "TRACE", "__INIT__"):
        answer = await client.request(method, f"{API}/errors")
        assert answer.status_code == 405, method
        assert answer.json()["success"] is False


async def test_it_can_be_mounted_in_another_application(store: Store, put: Put) -> None:
    """Under a prefix that its links and its description know."""
    await put()
    outer = Starlette()
    outer.mount("/tocsin", create_app(settings_with(), store=store))
    async with client_of(outer, token=TOKENS["full"]) as client:
        listed = await client.get(f"{HOST}/tocsin{API}/errors")
        page = await client.get(f"{HOST}/tocsin/admin/debug")
        described = await client.get(f"{HOST}/tocsin{API}/openapi.json")
        style = await client.get(f"{HOST}/tocsin/admin/debug/static/page.css")

    assert listed.json()["count"] == 1
    assert 'href="/tocsin/admin/debug/groups/1"' in page.text
    assert 'href="/admin' not in page.text
    assert described.json()["servers"] == [{"url": "/tocsin"}]
    assert style.status_code == 200
