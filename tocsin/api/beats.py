"""Heartbeats of cron jobs by HTTP: told by whoever may send errors, listed, forgotten."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tocsin import clock, semconv
from tocsin.api.calls import Call, Caller, House, Parameter, Right, answer
from tocsin.api.inputs import Inputs
from tocsin.beats import State, name_of
from tocsin.exporter import facts, foreign
from tocsin.exporter.decode import Source
from tocsin.exporter.door import Door, Full
from tocsin.exporter.spool import VERSION
from tocsin.failures import SchemaMismatch, StoreAway
from tocsin.model import Beat
from tocsin.store import beats, shapes
from tocsin.store.leases import database_now

BASE: Final = "/api/debug/beats"

_SERVICE = "cron"  # where nobody names one
_STATUSES = (State.OK, State.FAILED)
_WITHIN_S = 3.0


async def tell_beat(request: Request, house: House) -> Response:
    """Stored at once; while the database is away it waits in the server's spool, and the job need not."""
    if house.door is None:
        raise HTTPException(404, "no beats are taken here; send them to `tocsin serve`")
    given = Inputs(request.query_params)
    every, grace = given.span("every"), given.span("grace")
    content = facts.tidy(
        {
            "v": VERSION,
            "kind": "beat",
            "time_unix_nano": clock.now_ns(),
            "name": name_of(request.path_params["name"]),
            "every_s": every and every.total_seconds(),
            "grace_s": grace and grace.total_seconds(),
            "ok": given.one_of("status", _STATUSES) != State.FAILED,
            "message": request.query_params.get("message", ""),  # of several lines perhaps, and bounded by `tidy`
        }
    )
    resource = foreign.resource_of(
        {
            semconv.SERVICE_NAME: given.text("service") or _SERVICE,
            semconv.DEPLOYMENT_ENVIRONMENT: given.text("environment") or house.settings.environment,
        }
    )
    beat = facts.read(content, Source.of({"resource": json.loads(resource.encoded)}), timedelta(0), is_shipped=False)
    assert isinstance(beat, Beat)
    try:
        async with asyncio.timeout(_WITHIN_S):
            await house.store.write(_store, beat)
    except (StoreAway, SchemaMismatch, TimeoutError):
        await _keep(house.door, foreign.encoded(content | {"door": True}, resource))
        return answer({"success": True, "message": f"{beat.name} is told; it is stored when the database is back"})
    return answer({"success": True, "message": f"{beat.name} is {State.OK if beat.is_ok else State.FAILED}"})


def _store(connection: Connection, beat: Beat) -> None:
    now = database_now(connection)
    beats.tell(connection, replace(beat, timestamp=now), now)


async def _keep(door: Door, line: bytes) -> None:
    try:
        with door.room.enter() as place:
            place.grow(len(line))
            await door.take("line", line, is_json=True, is_gzip=False)
    except Full as problem:
        raise HTTPException(503, str(problem), {"retry-after": str(problem.retry_after_s)}) from None


async def list_beats(request: Request, house: House) -> Response:
    environment = Inputs(request.query_params).text("environment")
    return answer(await house.store.read(shapes.beat_list, environment))


async def forget_beat(request: Request, house: House) -> Response:
    """What rang of it is resolved by who forgets it."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    name = name_of(request.path_params["name"])
    environment = Inputs(request.query_params).text("environment")
    now = clock.now()
    beat = await house.store.write(beats.forget, name, environment, by=caller.name, via=caller.via, now=now)
    if house.alerts is not None:
        house.alerts.wake()
    return answer(shapes.forgotten(beat))


# The table

_TEXT = {"type": "string"}
_SUCCESS: dict[str, Any] = {"success": {"const": True}}
_NAME = Parameter(name="name", about="What the job is called: letters, digits, spaces and . : @ + - _")
_ENVIRONMENT = Parameter(name="environment", about="The environment that it runs in.")

CALLS = (
    Call(
        method="GET",
        path=BASE,
        right=Right.READ,
        run=list_beats,
        about="The heartbeats of cron jobs, by name.",
        takes=(replace(_ENVIRONMENT, about="Only this environment."),),
        gives=_SUCCESS
        | {
            "count": {"type": "integer", "minimum": 0},
            "beats": {"type": "array", "items": {"$ref": "#/components/schemas/Beat"}},
        },
    ),
    Call(
        method="POST",
        path=f"{BASE}/{{name}}",
        right=Right.INGEST,
        run=tell_beat,
        about="Tell that a job has run; it rings when it fails, and when the next one does not come in time.",
        takes=(
            _NAME,
            Parameter(name="every", about="How often it runs: 30m, 2h, 1d, 1w. Needed the first time."),
            Parameter(name="grace", about="How much later it may come; a tenth of that, 1 min to 2 h, by default."),
            Parameter(name="status", about="How it ended; ok by default.", schema=_TEXT | {"enum": [*_STATUSES]}),
            Parameter(name="message", about="What there is to say, such as the end of its log."),
            Parameter(name="service", about="The service that it belongs to; cron by default."),
            replace(_ENVIRONMENT, about="The environment that it runs in; the server's by default."),
        ),
        gives=_SUCCESS | {"message": _TEXT},
    ),
    Call(
        method="DELETE",
        path=f"{BASE}/{{name}}",
        right=Right.FULL,
        run=forget_beat,
        about="Forget a job that runs no more; what rang of it is resolved.",
        takes=(_NAME, replace(_ENVIRONMENT, about="Which one, where it is in several.")),
        gives=_SUCCESS | {"message": _TEXT},
        also={404: "There is none."},
    ),
)
