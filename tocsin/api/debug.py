"""The debug API: what happened, how things stand, and acting on it."""

from __future__ import annotations

import asyncio
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tocsin import clock, requests
from tocsin.api import memory, openapi
from tocsin.api.auth import fields_sent
from tocsin.api.calls import Call, Caller, House, Parameter, Right, answer, go_on_behind, within
from tocsin.api.inputs import Inputs
from tocsin.failures import StoreAway
from tocsin.lifecycle import Status, Trigger
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store import alerts, dependencies, groups, jobs, migrate, queries, shapes

BASE = "/api/debug"
MUTED_FOR = timedelta(hours=1)
"""How long a mute lasts when nobody says."""

_HEALTH_WITHIN_S = 2.0
_LED_WITHIN_S = 20.0
_LARGEST_NUMBER = 2**31 - 1
_MOST_DIGITS = 20
_SEVERITIES = tuple(Severity)
_STATUSES = tuple(Status)


# Health


async def health(request: Request, house: House) -> Response:
    """How tocsin itself stands; the database is asked by a real write, and nothing here hangs."""
    now = clock.now()
    silent_after = timedelta(seconds=house.settings.silent_after_s)
    writable, found, needed = await asyncio.gather(
        takes_a_write(house),
        within(_HEALTH_WITHIN_S, _read(house, queries.recent, now - timedelta(hours=1))),
        within(_HEALTH_WITHIN_S, _read(house, dependencies.current, now, silent_after)),
    )
    ringing = alerts_state(house)
    has_failed = not writable
    away = [one.name for one in needed or () if one.is_away]
    is_degraded = found is None or ringing["status"] == "error" or bool(away)
    return answer(
        {
            "status": "error" if has_failed else "degraded" if is_degraded else "ok",
            "timestamp": now,
            "server": {
                "uptime": round(time.monotonic() - house.started, 3),
                "isShuttingDown": house.is_stopping,
                "activeRequests": requests.active(),
                "memory": {
                    "used": memory.megabytes(memory.resident()),
                    "total": memory.megabytes(memory.available()),
                    "external": memory.megabytes(memory.shared()),
                },
                "pythonVersion": platform.python_version(),
                "platform": sys.platform,
                "env": house.settings.environment,
            },
            "services": {
                "redis": "off",
                **{one.name: "connected" for one in needed or ()},
                "database": "connected" if writable else "error",
                **{name: ringing[name] for name in _CHANNELS},
                **dict.fromkeys(away, "error"),
            },
            "alerts": ringing,
            "recentErrors": {"count": found.count if found else 0, "last": found.last if found else None},
        },
        503 if has_failed else 200,
    )


async def _read(house: House, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await house.store.read(work, *args, **kwargs)


async def takes_a_write(house: House) -> bool:
    """One probe at a time: those who ask meanwhile wait for the same, and none waits longer than its time."""
    if house.probe is None or house.probe.done():
        house.probe = asyncio.create_task(house.store.write(queries.probe_write, clock.now()), name="health")
        house.probe.add_done_callback(lambda probe: probe.cancelled() or probe.exception())
    done, _ = await asyncio.wait({house.probe}, timeout=_HEALTH_WITHIN_S)
    return bool(done) and not house.probe.cancelled() and house.probe.exception() is None


_CHANNELS: dict[str, Callable[[Settings], bool]] = {
    "telegram": lambda settings: bool(settings.telegram_token),
    "email": lambda settings: bool(settings.smtp_url and settings.email_to),
    "webhook": lambda settings: bool(settings.webhook_url),
}
"""The ways to people, and whether the settings name one."""


def alerts_state(house: House) -> dict[str, Any]:
    """
    What the alerts say of themselves, with ``status`` (ok, error, off) and each channel in a word.

    An application without alerts is not ill; a server whose alerts do not run is.
    """
    is_set = {name: look(house.settings) for name, look in _CHANNELS.items()}
    if house.alerts is None:
        status = "error" if house.expects_alerts else "off"
        return {"status": status} | {name: status if is_set[name] else "off" for name in is_set}
    state = house.alerts.state()
    failing = {one["channel"] for one in state.get("channels", []) if one["parked_reason"] or one["last_error"]}
    if is_set["telegram"] and state.get("bot", {}).get("problem"):
        failing.add("telegram")
    words = {name: "off" if not is_set[name] else "error" if name in failing else "connected" for name in is_set}
    # After a start the lease may belong to a server that is gone, until it runs out.
    is_led = state.get("leader") or state.get("leader_id") is not None
    is_late = time.monotonic() - house.started > _LED_WITHIN_S
    is_ill = failing or (not is_led and is_late)
    return {"status": "error" if is_ill else "ok"} | words | state


async def livez(request: Request, house: House) -> Response:
    """Whether this process runs."""
    return answer({"status": "ok"})


async def readyz(request: Request, house: House) -> Response:
    """Whether calls would succeed: the database is there, and has the schema of this version."""
    version = await within(_HEALTH_WITHIN_S, _read(house, migrate.version))
    is_ready = version == migrate.EXPECTED and not house.is_stopping
    return answer({"status": "ok" if is_ready else "unavailable"}, 200 if is_ready else 503)


# Errors


async def list_errors(request: Request, house: House) -> Response:
    given = Inputs(request.query_params)
    rows, following = await house.store.read(
        queries.list_errors,
        category=given.text("category"),
        severity=given.one_of("severity", _SEVERITIES),
        resolved=given.yes_no("resolved"),
        service=given.text("service"),
        environment=given.text("environment"),
        group=given.whole("group", 1, _LARGEST_NUMBER),
        q=given.text("q"),
        since=given.moment("since", clock.now()),
        limit=given.whole("limit", 1, queries.MAX_LIMIT) or 50,
        before=given.text("before"),
    )
    return answer(shapes.error_list(rows, following))


async def get_error(request: Request, house: House) -> Response:
    row = await house.store.read(queries.get_error, request.path_params["id"])
    return answer({"success": True, "error": row})


async def get_stats(request: Request, house: House) -> Response:
    given = Inputs(request.query_params)
    hours = given.whole("hours", 1, 24 * 366) or 24
    found = await house.store.read(
        queries.stats,
        hours,
        clock.now(),
        service=given.text("service"),
        environment=given.text("environment"),
    )
    return answer(shapes.stats(found, hours))


async def resolve_error(request: Request, house: House) -> Response:
    """An error's id resolves its group with all its errors so far."""
    error_id = request.path_params["id"]
    number = await house.store.read(_number_of, error_id)
    acted = await act(request, house, number, Trigger.RESOLVE)
    return answer({"success": True, "message": shapes.outcome_text(acted), "group": acted.group.number})


def _number_of(connection: Connection, error_id: str) -> int:
    queries.get_error(connection, error_id)  # says NotFound for what is no id, on both databases
    return groups.number_of_error(connection, error_id)


# Groups


async def list_groups(request: Request, house: House) -> Response:
    found, following = await house.store.read(groups.list_groups, **group_filters(Inputs(request.query_params)))
    return answer(shapes.group_list(found, following))


def group_filters(given: Inputs) -> dict[str, Any]:
    """The filters of a list of groups, as its query names them."""
    status = given.one_of("status", _STATUSES)
    severity = given.one_of("severity", _SEVERITIES)
    return {
        "status": Status(status) if status else None,
        "severity": Severity(severity) if severity else None,
        "category": given.text("category"),
        "service": given.text("service"),
        "environment": given.text("environment"),
        "q": given.text("q"),
        "limit": given.whole("limit", 1, queries.MAX_LIMIT) or 50,
        "before": given.text("before"),
    }


async def get_group(request: Request, house: House) -> Response:
    return answer(await house.store.read(shapes.whole_group, number_in(request), clock.now()))


def number_in(request: Request) -> int:
    """The group's number in the path; what is no number names no group."""
    text = request.path_params["n"].removeprefix("#")
    # Python refuses to read a number of thousands of digits, be they zeros.
    digits = text if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else "0"
    if not 0 < int(digits) <= _LARGEST_NUMBER:
        raise HTTPException(404, f"there is no group {text[:40]}")
    return int(digits)


async def act(
    request: Request, house: House, number: int, trigger: Trigger, *, until: datetime | None = None
) -> groups.Acted:
    """Let a person act on a group; its rows follow at once where they are few, behind the answer where not."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    acted = await house.store.write(groups.act, number, trigger, by=caller.name, via=caller.via, until=until)
    if acted.changed and trigger in (Trigger.RESOLVE, Trigger.REOPEN):
        go_on_behind(house, "marking the rows of a group", _settle(house))
    if house.alerts is not None:
        house.alerts.wake()
    return acted


async def _settle(house: House) -> None:
    while await house.store.write(groups.settle_rows):
        pass


def _action(trigger: Trigger) -> Callable[[Request, House], Awaitable[Response]]:
    async def run(request: Request, house: House) -> Response:
        acted = await act(request, house, number_in(request), trigger)
        return answer(shapes.acted(acted))

    return run


async def mute_group(request: Request, house: House) -> Response:
    until = clock.now() + (await mute_span(request))
    acted = await act(request, house, number_in(request), Trigger.MUTE, until=until)
    return answer(shapes.acted(acted))


async def mute_span(request: Request) -> timedelta:
    """For how long to mute: from the query, else from the body, else `MUTED_FOR`."""
    span = Inputs(request.query_params).span("for") or (await fields_sent(request)).span("for")
    return span or MUTED_FOR


# The rest


async def get_queue(request: Request, house: House) -> Response:
    figures = dict.fromkeys(("active", "waiting", "failed", "completed", "delayed", "totalKeys"), 0)
    failed = await house.store.read(jobs.count_failed)
    return answer({"success": True, "queue": {"name": None} | figures, "queues": [], "jobs": {"failed": failed}})


async def get_memory(request: Request, house: House) -> Response:
    figures = await asyncio.to_thread(memory.figures)
    reported = []
    for row in await _instances_or_none(house):
        shown = {name: row[name] for name in ("id", "service", "environment", "host", "pid", "last_seen")}
        reported.append(shown | {"memory": memory.reported(row)})
    return answer({"success": True, "memory": figures, "instances": reported})


async def _instances_or_none(house: House) -> list[dict[str, Any]]:
    try:
        return await house.store.read(queries.list_instances)
    except StoreAway:  # this process can tell of itself all the same
        return []


async def list_instances(request: Request, house: House) -> Response:
    rows = await house.store.read(queries.list_instances)
    return answer({"success": True, "count": len(rows), "instances": rows})


async def get_openapi(request: Request, house: House) -> Response:
    return answer(openapi.document(request.app.state.calls, root=request.scope.get("root_path", "")))


async def list_alerts(request: Request, house: House) -> Response:
    given = Inputs(request.query_params)
    before = given.text("before")
    found, following = await house.store.read(
        alerts.list_alerts,
        limit=given.whole("limit", 1, queries.MAX_LIMIT) or 50,
        before=None if before is None else before.replace(" ", "+"),  # an unescaped plus of a time
    )
    return answer(shapes.alert_list(found, following))


# The table

_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}
_YES = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_COUNTS = {"type": "object", "additionalProperties": _COUNT}
_SUCCESS = {"success": {"const": True}}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(name: str, of: dict[str, Any], *, pages: bool = True) -> dict[str, Any]:
    following = {"next": _maybe(_TEXT)} if pages else {}
    return _SUCCESS | {"count": _COUNT, name: {"type": "array", "items": of}} | following


_LIMIT = Parameter(
    name="limit",
    about="How many at most.",
    schema={"type": "integer", "minimum": 1, "maximum": queries.MAX_LIMIT, "default": 50},
)
_BEFORE = Parameter(name="before", about="The value of `next` of the page before.")
_SEVERITY = Parameter(name="severity", about="Only this severity.", schema=_TEXT | {"enum": list(_SEVERITIES)})
_CATEGORY = Parameter(name="category", about="Only this category.")
_SERVICE = Parameter(name="service", about="Only this service.")
_ENVIRONMENT = Parameter(name="environment", about="Only this environment.")
_ERROR_ID = Parameter(name="id", about="The id of an error.", schema=_TEXT | {"format": "uuid"})
_NUMBER = Parameter(
    name="n",
    about="The number of a group, as in #42.",
    schema={"type": "integer", "minimum": 1, "maximum": _LARGEST_NUMBER},
)
_FOR = Parameter(name="for", about="For how long: 30m, 2h, 1d. An hour when nobody says.")

_NO_SUCH = {404: "There is none."}
_NOT_IN_THIS_STATE = _NO_SUCH | {409: "A group in this status cannot take that."}
_ACTED = _SUCCESS | {"message": _TEXT, "group": _ref("Group")}


def _act_on_group(trigger: Trigger, about: str) -> Call:
    return Call(
        method="POST",
        path=f"{BASE}/groups/{{n}}/{trigger}",
        right=Right.FULL,
        run=_action(trigger),
        about=about,
        takes=(_NUMBER,),
        gives=_ACTED,
        also=_NOT_IN_THIS_STATE,
    )


CALLS = (
    Call(
        method="GET",
        path="/livez",
        right=Right.NONE,
        run=livez,
        about="Whether the process runs.",
        gives={"status": _TEXT},
    ),
    Call(
        method="GET",
        path="/readyz",
        right=Right.NONE,
        run=readyz,
        about="Whether the database is there and prepared.",
        gives={"status": _TEXT},
        also={503: "Not now."},
    ),
    Call(
        method="GET",
        path=f"{BASE}/health",
        right=Right.READ,
        run=health,
        about="How the server and its parts stand.",
        gives={
            "status": _TEXT | {"enum": ["ok", "degraded", "error"]},
            "timestamp": _TIME,
            "server": _ref("Server"),
            "services": {"type": "object", "additionalProperties": _TEXT},
            "alerts": {"type": "object"},
            "recentErrors": {
                "type": "object",
                "properties": {"count": _COUNT, "last": _maybe(_ref("Error"))},
                "required": ["count", "last"],
            },
        },
        also={503: "The database takes no write; the answer is the same."},
    ),
    Call(
        method="GET",
        path=f"{BASE}/errors",
        right=Right.READ,
        run=list_errors,
        about="Errors, newest first.",
        takes=(
            _LIMIT,
            _CATEGORY,
            _SEVERITY,
            Parameter(name="resolved", about="Only resolved ones, or only the others.", schema=_YES),
            _SERVICE,
            _ENVIRONMENT,
            Parameter(name="group", about="Only those of the group with this number.", schema=_NUMBER.schema),
            Parameter(name="q", about="Text in the message."),
            Parameter(name="since", about="Not older than this time, or than so long ago: 2h."),
            _BEFORE,
        ),
        gives=_list_of("errors", _ref("Error")),
    ),
    Call(
        method="GET",
        path=f"{BASE}/errors/stats",
        right=Right.READ,
        run=get_stats,
        about="Statistics of the last hours.",
        takes=(
            Parameter(
                name="hours",
                about="How many hours back.",
                schema={"type": "integer", "minimum": 1, "maximum": 24 * 366, "default": 24},
            ),
            _SERVICE,
            _ENVIRONMENT,
        ),
        gives=_SUCCESS | {"period": _TEXT, "stats": _ref("Stats")},
    ),
    Call(
        method="GET",
        path=f"{BASE}/errors/{{id}}",
        right=Right.READ,
        run=get_error,
        about="One error.",
        takes=(_ERROR_ID,),
        gives=_SUCCESS | {"error": _ref("Error")},
        also=_NO_SUCH,
    ),
    Call(
        method="POST",
        path=f"{BASE}/errors/{{id}}/resolve",
        right=Right.FULL,
        run=resolve_error,
        about="Resolve the group of an error, with all its errors so far.",
        takes=(_ERROR_ID,),
        gives=_SUCCESS | {"message": _TEXT, "group": {"type": "integer"}},
        also=_NO_SUCH,
    ),
    Call(
        method="GET",
        path=f"{BASE}/groups",
        right=Right.READ,
        run=list_groups,
        about="Groups, the last seen first.",
        takes=(
            _LIMIT,
            Parameter(name="status", about="Only this status.", schema=_TEXT | {"enum": list(_STATUSES)}),
            _SEVERITY,
            _CATEGORY,
            _SERVICE,
            _ENVIRONMENT,
            Parameter(name="q", about="Text in title, culprit or type."),
            _BEFORE,
        ),
        gives=_list_of("groups", _ref("Group")),
    ),
    Call(
        method="GET",
        path=f"{BASE}/groups/{{n}}",
        right=Right.READ,
        run=get_group,
        about="One group with its last errors, its errors per hour, and what people did to it.",
        takes=(_NUMBER,),
        gives=_SUCCESS
        | {
            "group": _ref("Group"),
            "errors": {"type": "array", "items": _ref("Error")},
            "hours": {"type": "array", "items": _ref("Hour")},
            "history": {"type": "array", "items": _ref("Act")},
        },
        also=_NO_SUCH,
    ),
    _act_on_group(Trigger.RESOLVE, "Resolve a group with all its errors so far."),
    _act_on_group(Trigger.REOPEN, "Open a group again."),
    _act_on_group(Trigger.ACKNOWLEDGE, "Say that somebody looks after it."),
    _act_on_group(Trigger.IGNORE, "Never ring for it again."),
    Call(
        method="POST",
        path=f"{BASE}/groups/{{n}}/mute",
        right=Right.FULL,
        run=mute_group,
        about="Do not ring for it for some time.",
        takes=(_NUMBER, _FOR),
        body={"type": "object", "properties": {"for": _TEXT | {"description": _FOR.about}}},
        gives=_ACTED,
        also=_NOT_IN_THIS_STATE,
    ),
    Call(
        method="GET",
        path=f"{BASE}/queue",
        right=Right.READ,
        run=get_queue,
        about="The queues that are watched, and how many failed jobs wait for a person.",
        gives=_SUCCESS
        | {
            "queue": {"type": "object", "properties": {"name": _maybe(_TEXT)}, "additionalProperties": _COUNT},
            "queues": {"type": "array", "items": {"type": "object"}},
            "jobs": {"type": "object", "properties": {"failed": _COUNT}, "required": ["failed"]},
        },
    ),
    Call(
        method="GET",
        path=f"{BASE}/memory",
        right=Right.READ,
        run=get_memory,
        about="Memory of this process, and of every instance as it last reported.",
        gives=_SUCCESS
        | {
            "memory": {"type": "object", "additionalProperties": _ref("Memory")},
            "instances": {"type": "array", "items": {"type": "object"}},
        },
    ),
    Call(
        method="GET",
        path=f"{BASE}/instances",
        right=Right.READ,
        run=list_instances,
        about="The processes that are watched.",
        gives=_list_of("instances", _ref("Instance"), pages=False),
    ),
    Call(
        method="GET",
        path=f"{BASE}/alerts",
        right=Right.READ,
        run=list_alerts,
        about="Alerts with their deliveries and every attempt, newest first.",
        takes=(_LIMIT, _BEFORE),
        gives=_list_of("alerts", _ref("Alert")),
    ),
    Call(
        method="GET",
        path=f"{BASE}/openapi.json",
        right=Right.READ,
        run=get_openapi,
        about="This description.",
    ),
)
