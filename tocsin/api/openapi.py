"""The description of the API, made from the same table that the routes are made from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, Table
from sqlalchemy.types import JSON, TypeDecorator

import tocsin
from tocsin.api.calls import Call, Right
from tocsin.beats import State
from tocsin.store import alerts, schema
from tocsin.store.schema import UtcTime

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_COUNTS = {"type": "object", "additionalProperties": _COUNT}
_TIME = {"type": "string", "format": "date-time"}
_INWARD = {"mark", "marked_at", "rows_pending"}
_OF_JOB: dict[str, Any] = {
    "arguments": {},  # what a service has sent, and JSON
    "changed": {},
    "attempts": {},
    "group": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
}


def document(calls: Iterable[Call], *, root: str) -> dict[str, Any]:
    """OpenAPI 3.1 of all calls that answer in JSON; `root` is the path under which the application is mounted."""
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        if not call.is_page:
            paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tocsin", "version": tocsin.__version__},
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(call: Call) -> dict[str, Any]:
    in_path = set(re.findall(r"{(\w+)}", call.path))
    answers: dict[str, Any] = {"200": _response("Done." if call.method == "POST" else call.about, call.gives)}
    failures: dict[int, str] = {}
    if call.takes or call.body:
        failures[400] = "A value is wrong; the text names it."
    if call.right is not Right.NONE:
        failures |= {
            401: "No token, or one that is not known.",
            403: "The token may not do that.",
            429: "Too many wrong tokens from this address.",
            503: "The database cannot be reached.",
        }
    if call.right is Right.INGEST:
        failures |= {
            400: "It cannot be read; for a posted error the text names the field.",
            408: "The body arrived too slowly.",
            413: "The body is too long.",
            415: "Another content type or encoding.",
            503: "There is no room now; send it again after `Retry-After`.",
        }
    for status, text in (failures | dict(call.also)).items():
        is_same = status == 503 and 503 in call.also
        answers[str(status)] = _response(text, call.gives) if is_same else _failure(text)
    operation: dict[str, Any] = {
        "summary": call.about,
        "description": f"Right: {call.right}.",
        "operationId": re.sub(r"\W+", "_", f"{call.method.lower()}{call.path}").strip("_"),
        "security": [] if call.right is Right.NONE else [{"token": []}],
        "parameters": [
            {
                "name": taken.name,
                "in": "path" if taken.name in in_path else "query",
                "required": taken.name in in_path,
                "description": taken.about,
                "schema": taken.schema,
            }
            for taken in call.takes
        ],
        "responses": dict(sorted(answers.items())),
    }
    if call.body is not None:
        operation["requestBody"] = {"required": False, "content": {"application/json": {"schema": call.body}}}
    return operation


def _response(text: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _object(properties)}}}


def _failure(text: str) -> dict[str, Any]:
    return {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}},
    }


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _maybe(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "null"}]}


def _schemas() -> dict[str, Any]:
    delivery: dict[str, Any] = {one.name: {} for one in dataclasses.fields(alerts.Delivery)}
    return {
        "Failure": _object({"success": {"const": False}, "error": _TEXT}),
        "Error": _object(_columns(schema.error_logs) | {"group": _maybe({"type": "integer"})}),
        "Group": _object(_columns(schema.error_groups, _INWARD)),
        "Instance": _object(_columns(schema.instances)),
        "Beat": _object(
            {"name": _TEXT, "environment": _TEXT, "service": _maybe(_TEXT), "state": {"enum": [*State]}}
            | {"every": _TEXT, "grace": _TEXT, "last_at": _TIME, "last_ok_at": _maybe(_TIME), "due_at": _TIME}
            | {"took_s": _maybe({"type": "number"}), "message": _maybe(_TEXT), "group": _maybe({"type": "integer"})}
            | {"created_at": _TIME}
        ),
        "Job": _object(_columns(schema.jobs) | _OF_JOB),
        "Alert": _object(
            {one.name: {} for one in dataclasses.fields(alerts.Alert)}
            | {"group": _maybe({"type": "integer"}), "deliveries": {"type": "array", "items": _object(delivery)}}
        ),
        "Hour": _object({"hour": _TIME, "count": _COUNT}),
        "Act": _object(
            {"at": _TIME, "actor": _TEXT, "via": _TEXT, "action": _TEXT, "detail": _maybe(_TEXT)}
            | {"allowed": {"type": "boolean"}}
        ),
        "Memory": _object({"bytes": _COUNT, "mb": {"type": "number"}, "description": _TEXT}),
        "Stats": _object(
            {
                "total": _COUNT,
                "by_severity": _COUNTS,
                "by_category": _COUNTS,
                "by_service": _COUNTS,
                "by_hour": {"type": "array", "items": {"$ref": "#/components/schemas/Hour"}},
                "unresolved": _COUNT,
            }
        ),
        "Server": _object(
            {
                "uptime": {"type": "number", "description": "Seconds."},
                "isShuttingDown": {"type": "boolean"},
                "activeRequests": _COUNT,
                "memory": _object({"used": _TEXT, "total": _TEXT, "external": _TEXT}),
                "pythonVersion": _TEXT,
                "platform": _TEXT,
                "env": _TEXT,
            }
        ),
    }


def _columns(table: Table, without: Iterable[str] = ()) -> dict[str, Any]:
    return {column.name: _column(column) for column in table.c if column.name not in set(without)}


def _column(column: Column[Any]) -> dict[str, Any]:
    kind: dict[str, Any]
    match column.type:
        case UtcTime():
            kind = _TIME
        case Boolean():
            kind = {"type": "boolean"}
        case Integer() | BigInteger():
            kind = {"type": "integer"}
        case JSON() | TypeDecorator(impl_instance=JSON()):
            kind = {"type": "object"}
        case _:
            kind = _TEXT
    return _maybe(kind) if column.nullable else kind
