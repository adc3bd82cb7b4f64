"""Beats: the signs of life of what runs on a schedule, and which of them are missing."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from tocsin.model import Beat


def note(connection: Connection, beat: Beat, now: datetime) -> None:
    """Note a sign of life; an older one than that of the row changes nothing."""
