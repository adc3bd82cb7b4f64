"""
Tokens, sessions and log-in codes: each is shown once and kept only as a hash.

All are random, of 128 bits or more, so a plain hash suffices: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, or_, select, update

from tocsin.store.schema import credentials

CODE_LASTS = timedelta(minutes=10)
SESSION_IDLE = timedelta(hours=8)
SESSION_LASTS = timedelta(days=7)
_TOUCH_EVERY = timedelta(minutes=1)


class Kind(StrEnum):
    """What a secret is for."""

    TOKEN = "token"  # noqa: S105  (a word, not a secret)
    SESSION = "session"
    CODE = "code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """Whom a secret stands for."""

    rights: str  # full, read, ingest
    label: str  #   who it is, as the audit names them


def digest(secret: str) -> str:
    """What is stored and compared in place of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def make_token(connection: Connection, *, rights: str, label: str, now: datetime) -> str:
    """A new token; this is the only time that it can be seen."""
    return _make(connection, Kind.TOKEN, rights, label, now=now, expires_at=None)


def make_code(connection: Connection, *, rights: str, label: str, now: datetime) -> str:
    """A new code for one log-in within ten minutes."""
    sweep(connection, now)
    return _make(connection, Kind.CODE, rights, label, now=now, expires_at=now + CODE_LASTS)


def make_session(connection: Connection, *, rights: str, label: str, now: datetime) -> str:
    """A new session, good for seven days, eight hours of them without use."""
    return _make(connection, Kind.SESSION, rights, label, now=now, expires_at=now + SESSION_LASTS)


def has_token(connection: Connection, rights: str) -> bool:
    """Whether a token with these rights was made before."""
    query = select(credentials.c.id).where(credentials.c.kind == Kind.TOKEN, credentials.c.rights == rights).limit(1)
    return connection.execute(query).first() is not None


def token(connection: Connection, secret: str) -> Credential | None:
    """Whom a token stands for, or None."""
    query = select(credentials).where(credentials.c.id == digest(secret), credentials.c.kind == Kind.TOKEN)
    row = connection.execute(query).one_or_none()
    return None if row is None else Credential(rights=row.rights, label=row.label)


def redeem_code(connection: Connection, secret: str, now: datetime) -> Credential | None:
    """Whom a code stands for, or None; it is used up by this, whoever else asks at the same moment."""
    taken = connection.execute(
        delete(credentials)
        .where(credentials.c.id == digest(secret), credentials.c.kind == Kind.CODE)
        .returning(credentials.c.rights, credentials.c.label, credentials.c.expires_at)
    ).one_or_none()
    if taken is None or taken.expires_at <= now:
        return None
    return Credential(rights=taken.rights, label=taken.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(Credential):
    """A session that is good; ``is_stale`` when its use should be noted by `touch_session`."""

    is_stale: bool


def session(connection: Connection, secret: str, now: datetime) -> Session | None:
    """Whose session it is; None when there is none, or it has run out."""
    query = select(credentials).where(
        credentials.c.id == digest(secret),
        credentials.c.kind == Kind.SESSION,
        credentials.c.expires_at > now,
        credentials.c.last_used_at > now - SESSION_IDLE,
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return Session(rights=row.rights, label=row.label, is_stale=row.last_used_at <= now - _TOUCH_EVERY)


def touch_session(connection: Connection, secret: str, now: datetime) -> None:
    """Note that a session was used."""
    connection.execute(update(credentials).where(credentials.c.id == digest(secret)).values(last_used_at=now))


def end_session(connection: Connection, secret: str) -> None:
    """A session ends here and for every server at once."""
    connection.execute(
        delete(credentials).where(credentials.c.id == digest(secret), credentials.c.kind == Kind.SESSION)
    )


def sweep(connection: Connection, now: datetime) -> int:
    """Remove what has run out; how many."""
    gone = or_(
        credentials.c.expires_at <= now,
        (credentials.c.kind == Kind.SESSION) & (credentials.c.last_used_at <= now - SESSION_IDLE),
    )
    return connection.execute(delete(credentials).where(gone)).rowcount


def _make(
    connection: Connection, kind: Kind, rights: str, label: str, *, now: datetime, expires_at: datetime | None
) -> str:
    secret = secrets.token_urlsafe(32)
    connection.execute(
        insert(credentials).values(
            id=digest(secret),
            kind=kind,
            rights=rights,
            label=label,
            created_at=now,
            expires_at=expires_at,
            last_used_at=now,
        )
    )
    return secret
