"""Secrets out of all that leaves the process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MASK = "[scrubbed]"


def hide(values: Iterable[str]) -> None:
    """Register literal secrets that `scrub_text` always masks."""
    raise NotImplementedError


def scrub_text(text: str) -> str:
    """The text with secrets masked."""
    raise NotImplementedError


def scrub_value(value: object, key: str | None = None, *, limit: int = 1024) -> Any:
    """A value as JSON can hold it, secrets masked."""
    raise NotImplementedError


def scrub_url(url: str) -> str:
    """A URL without password and secret parameters."""
    raise NotImplementedError


def scrub_query(query: str) -> str:
    """A query string without the values of secret parameters."""
    raise NotImplementedError


def is_secret_key(key: str) -> bool:
    """Whether a key names a secret."""
    raise NotImplementedError
