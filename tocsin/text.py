"""Text that every database, terminal and chat can take: nothing invisible, nothing endless."""

from __future__ import annotations

import re

MESSAGE_LIMIT = 16 * 1024
"""Characters kept of a message."""

STACK_LIMIT = 64 * 1024
"""Characters kept of a stack."""

# NUL is refused by PostgreSQL, lone surrogates by every driver; other control characters steer
# terminals, and bidirectional controls show text in another order than it is stored in.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def clean(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """
    Text with unsafe characters as visible escapes and its middle cut out beyond `limit`.

    Cleaning twice changes nothing more.

    Args:
        limit: characters to keep; the escapes may add to it.
    """
    text = shorten(text, limit)
    if text.isprintable():
        return text
    return _UNSAFE.sub(_escape, text)


def shorten(text: str, limit: int) -> str:
    """Text of at most `limit` characters: start and end are kept, what is missing is counted."""
    if len(text) <= limit:
        return text
    note = f" …[{len(text) - limit} characters left out]… "
    keep = max(limit - len(note), 0)
    head = keep * 3 // 4
    return text[:head] + note + text[len(text) - (keep - head) :] if keep else text[:limit]


def one_line(text: str, limit: int = 200) -> str:
    """The text on one line, for titles, log lines and headers."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def bytes_in_words(size: int) -> str:
    """A size as people say it: ``98 MB``, of 2^20 bytes each."""
    return f"{size / 2**20:,.0f} MB"
