"""Values from outside: read strictly, refused with the name of the field."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tocsin.failures import BadInput
from tocsin.spans import span_of

BODY_LIMIT = 2**20
"""Bytes of a request's body, on all calls that are not for errors in bulk."""

_BODY_WITHIN_S = 10
_TEXT_LIMIT = 500


class Inputs:
    """The query of a request, or the fields of its form, read one by one; an empty value is none."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, name: str, limit: int = _TEXT_LIMIT) -> str | None:
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise BadInput(name, "give a text")
        if len(value) > limit:
            raise BadInput(name, f"give at most {limit} characters")
        if any(ord(char) < 0x20 or 0xD800 <= ord(char) <= 0xDFFF for char in value):
            raise BadInput(name, "give a text without control characters")
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self.text(name, 40)
        if value is None:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise BadInput(name, f"give a whole number from {low} to {high}")
        return int(value)

    def one_of(self, name: str, words: Sequence[str]) -> str | None:
        value = self.text(name)
        if value is None:
            return None
        if value.lower() not in words:
            raise BadInput(name, f"give {', '.join(words[:-1])} or {words[-1]}")
        return value.lower()

    def yes_no(self, name: str) -> bool | None:
        value = self.one_of(name, ("true", "false", "1", "0"))
        return None if value is None else value in ("true", "1")

    def moment(self, name: str, now: datetime) -> datetime | None:
        """A time in ISO 8601 (without a zone: UTC), or how long ago: ``2h``."""
        value = self.text(name, 60)
        if value is None:
            return None
        if span := span_of(value):
            return now - span
        try:
            # An unescaped plus of "+00:00" arrives as a space.
            moment = datetime.fromisoformat(re.sub(r" (?=\d\d:?\d\d$)", "+", value) if "T" in value else value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise BadInput(name, "give a time such as 2026-01-31T09:00:00Z, or how long ago: 2h") from None

    def span(self, name: str) -> timedelta | None:
        """A length of time such as ``30m``, ``2h``, ``1d``; at most a year."""
        value = self.text(name, 40)
        if value is None:
            return None
        if not (span := span_of(value)):
            raise BadInput(name, "give a length of time such as 30m, 2h or 1d, at most a year")
        return span


async def body_of(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """The body of a request; one that is too long or too slow is refused before it is all there."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_WITHIN_S):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise HTTPException(413, f"the body is longer than {limit} bytes", {"connection": "close"})
    except TimeoutError:
        raise HTTPException(
            408, f"the body did not arrive within {_BODY_WITHIN_S} s", {"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    return bytes(body)


async def fields_of(request: Request) -> Inputs:
    """The fields of a body: a JSON object, or a form's; none is no field."""
    body = await body_of(request)
    if not body.strip():
        return Inputs({})
    content_type = request.headers.get("content-type", "").partition(";")[0].strip()
    # `curl -d '{…}'` calls everything a form; no form's body begins with a brace.
    if content_type == "application/x-www-form-urlencoded" and not body.lstrip().startswith(b"{"):
        try:
            return Inputs(dict(parse_qsl(body.decode("ascii"), max_num_fields=50, errors="strict")))
        except ValueError:
            raise BadInput("body", "this is no form") from None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput("body", "this is no JSON") from None
    if not isinstance(fields, dict):
        raise BadInput("body", "give a JSON object")
    return Inputs(fields)
