"""
Errors that come by HTTP: from any OpenTelemetry SDK or Collector, and as plain JSON.

Each call answers only when what it took is on the disk. Answers and failures are in the encoding of the
request, as the specification asks.

Source: OpenTelemetry protocol specification 1.7, *OTLP/HTTP*.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tocsin.api.calls import Call, House, Right, answer
from tocsin.exporter.door import BODY_BYTES, Door, Full, Kind, Place
from tocsin.exporter.otlp import Reading, TooMuch, Unreadable

PATHS: Final = ("/v1/logs", "/v1/traces", "/v1/metrics")

_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
_CHARSETS = ("", "utf-8", "utf8", "us-ascii")
_FORM = "application/x-www-form-urlencoded"

# A body may take so long in all, and be so slow: who is silent, or sends a byte now and then, is let go.
_BODY_WITHIN_S = 10.0
_PATIENCE_S = 5.0
_BYTES_PER_S = 4096

_REJECTED: Final[Mapping[str, str]] = {
    "logs": "rejectedLogRecords",
    "traces": "rejectedSpans",
    "metrics": "rejectedDataPoints",
}

# Source: google.rpc.Code.
_CODES: Final[Mapping[int, int]] = {401: 16, 403: 7, 404: 5, 405: 12, 408: 4, 413: 8, 429: 8, 500: 13, 503: 14}
_INVALID_ARGUMENT = 3


# The calls


def _take(kind: Kind) -> Callable[[Request, House], Awaitable[Response]]:
    async def run(request: Request, house: House) -> Response:
        door = _door(house)
        is_json, is_gzip = _is_json(request), _is_gzip(request)
        reading = await _through(door, kind, request, is_json=is_json, is_gzip=is_gzip)
        return _accepted(kind, is_json, reading.rejected, reading.problem or "")

    return run


async def drop_metrics(request: Request, house: House) -> Response:
    """Metrics are read and dropped: an SDK that sends everything to one place shall not fail for it."""
    _door(house)
    is_json, _ = _is_json(request), _is_gzip(request)
    await _body(request, BODY_BYTES["logs"], None)
    return _accepted("metrics", is_json, 0, "tocsin keeps errors, no metrics; OTEL_METRICS_EXPORTER=none saves the way")


async def post_errors(request: Request, house: House) -> Response:
    """One error, or a list of them, by hand: from curl, cron, or a program without OpenTelemetry."""
    door = _door(house)
    _require_json(request)
    reading = await _through(door, "posted", request, is_json=True, is_gzip=_is_gzip(request))
    return answer({"success": True, "count": reading.taken, "ids": reading.ids})


def _door(house: House) -> Door:
    if house.door is None:
        raise HTTPException(404, "no errors are taken here; send them to `tocsin serve`")
    return house.door


async def _through(door: Door, kind: Kind, request: Request, *, is_json: bool, is_gzip: bool) -> Reading:
    headers: dict[str, str] = {}
    try:
        with door.room.enter(is_gzip=is_gzip) as place:
            body = await _body(request, BODY_BYTES[kind], place)
            return await door.take(kind, body, is_json=is_json, is_gzip=is_gzip)
    except Unreadable as problem:
        status, text = 400, str(problem)
    except TooMuch as problem:
        status, text = 413, str(problem)
    except Full as problem:
        status, text, headers = 503, str(problem), {"retry-after": str(problem.retry_after_s)}
    raise HTTPException(status, text, headers)


# What is sent


def _is_json(request: Request) -> bool:
    """The encoding of an OTLP request; forms and plain text are none, which pages of other origins may post."""
    media, charset = _content_type(request)
    if media == _PROTOBUF:
        return False
    if media == _JSON and charset in _CHARSETS:
        return True
    raise HTTPException(415, f"send {_PROTOBUF}, or {_JSON} in UTF-8")


def _require_json(request: Request) -> None:
    media, charset = _content_type(request)
    # `curl -d '{…}'` calls everything a form; so does a page of another origin, which has no token.
    is_from_curl = media == _FORM and "authorization" in request.headers
    if not (media == _JSON or is_from_curl) or charset not in _CHARSETS:
        raise HTTPException(415, f"send JSON: `curl --json '{{…}}'`, or the header `Content-Type: {_JSON}`")


def _content_type(request: Request) -> tuple[str, str]:
    media, _, parameters = request.headers.get("content-type", "").partition(";")
    name, _, value = parameters.partition("=")
    charset = value.strip().strip('"').lower() if name.strip().lower() == "charset" else ""
    return media.strip().lower(), charset


def _is_gzip(request: Request) -> bool:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise HTTPException(415, "send the body as it is, or with the encoding gzip")
    return encoding == "gzip"


async def _body(request: Request, limit: int, place: Place | None) -> bytes:
    """
    The body of a request, counted while it arrives; without a place it is dropped.

    A refusal closes the connection: what is left of the body is not waited for.
    """
    kept = io.BytesIO()
    size = 0
    closing = {"connection": "close"}
    begun = time.monotonic()
    try:
        while True:
            left_s = min(_BODY_WITHIN_S, _PATIENCE_S + size / _BYTES_PER_S) - (time.monotonic() - begun)
            async with asyncio.timeout(left_s):
                message = await request.receive()
            if message["type"] != "http.request":
                raise HTTPException(400, "the body ended early", closing)
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise HTTPException(413, f"the body is longer than {limit} bytes", closing)
            if place is not None:
                place.grow(len(part))
                kept.write(part)
            if not message.get("more_body", False):
                return kept.getvalue()
    except TimeoutError:
        raise HTTPException(408, "the body arrives too slowly", closing) from None
    except Full as problem:
        raise HTTPException(503, str(problem), closing | {"retry-after": str(problem.retry_after_s)}) from None


# What is answered


def _accepted(signal: str, is_json: bool, rejected: int, problem: str) -> Response:
    """
    What was taken, and what was not (``partial_success``).

    The messages are two fields deep, the same for each signal: that needs no library.
    """
    if is_json:
        partial: dict[str, str] = {_REJECTED[signal]: str(rejected)} if rejected else {}
        if problem:
            partial["errorMessage"] = problem
        return _as_json({"partialSuccess": partial} if partial else {})
    partial_bytes = _number(1, rejected) + _text(2, problem)
    return _as_protobuf(_field(1, partial_bytes) if partial_bytes else b"")


def failure(request: Request, status: int, text: str, headers: Mapping[str, str]) -> Response:
    """What went wrong, as a ``google.rpc.Status`` in the encoding of the request."""
    code = _CODES.get(status, _INVALID_ARGUMENT)
    if _content_type(request)[0] == _PROTOBUF:
        return _as_protobuf(_number(1, code) + _text(2, text), status, headers)
    return _as_json({"code": code, "message": text}, status, headers)


def _as_json(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, media_type=_JSON)


def _as_protobuf(content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(content, status, headers, media_type=_PROTOBUF)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value) if value else b""


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode("utf-8", "replace")) if value else b""


def _field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# The table

_TEXT_SCHEMA = {"type": "string"}
_POSTED = {
    "type": "object",
    "properties": {
        "message": _TEXT_SCHEMA | {"description": "What went wrong."},
        "stack": _TEXT_SCHEMA | {"description": "A stack as Python or JavaScript prints it."},
        "severity": {"enum": ["low", "medium", "high", "critical"], "default": "high"},
        "category": _TEXT_SCHEMA,
        "context": {"type": "object"},
        "service": _TEXT_SCHEMA,
        "environment": _TEXT_SCHEMA,
        "timestamp": _TEXT_SCHEMA | {"format": "date-time", "description": "When it happened; now when nobody says."},
    },
    "required": ["message"],
}


def _otlp(path: str, run: Callable[[Request, House], Awaitable[Response]], about: str) -> Call:
    return Call(
        method="POST",
        path=path,
        right=Right.INGEST,
        run=run,
        about=about,
        fail=failure,
        body_limit=BODY_BYTES["logs"],
    )


CALLS = (
    _otlp("/v1/logs", _take("logs"), "Log records by OTLP/HTTP, protobuf or JSON: those with an exception are errors."),
    _otlp("/v1/traces", _take("traces"), "Spans by OTLP/HTTP, protobuf or JSON: their exceptions are errors."),
    _otlp("/v1/metrics", drop_metrics, "Metrics by OTLP/HTTP are read and dropped."),
    Call(
        method="POST",
        path="/api/debug/errors",
        right=Right.INGEST,
        run=post_errors,
        about="Send an error, or a list of them.",
        body={"anyOf": [_POSTED, {"type": "array", "items": _POSTED}]},
        gives={
            "success": {"const": True},
            "count": {"type": "integer", "minimum": 0},
            "ids": {"type": "array", "items": _TEXT_SCHEMA},
        },
        body_limit=BODY_BYTES["posted"],
    ),
)
