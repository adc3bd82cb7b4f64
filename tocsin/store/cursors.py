"""
Places in a list: opaque to who holds them, a moment and an id within.

A check sum guards against slips, so that a damaged one is refused instead of giving another page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from datetime import datetime

from tocsin.failures import BadInput

_MAX_LENGTH = 400


def encode(moment: datetime, row_id: str) -> str:
    """The place behind a row, in base64url; it begins with a letter: a dash would be an option on a command line."""
    body = json.dumps([moment.isoformat(), row_id], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_LETTER + _check_sum(body) + body).decode().rstrip("=")


def decode(text: str) -> tuple[datetime, str]:
    """
    The moment, with its zone, and the id of the row that a page ended with.

    Raises:
        BadInput: this is not what `encode` has made; the field is ``before``.
    """
    try:
        if len(text) > _MAX_LENGTH:
            raise ValueError
        body = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)[
            len(_LETTER) + _SUM_BYTES :
        ]
        told, row_id = json.loads(body)
        moment = datetime.fromisoformat(told)
        if not isinstance(row_id, str) or moment.tzinfo is None or encode(moment, row_id) != text:
            raise ValueError
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise refusal() from None
    return moment, row_id


def refusal() -> BadInput:
    """What is said of a place that no list has given, or another list."""
    return BadInput("before", "give the value of `next` from an earlier answer, as it was")


_LETTER = b"\0"  # an A in base64
_SUM_BYTES = 6


def _check_sum(body: bytes) -> bytes:
    return hashlib.sha256(b"tocsin" + body).digest()[:_SUM_BYTES]
