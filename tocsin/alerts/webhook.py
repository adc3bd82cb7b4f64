"""
Webhook: each alert as JSON to an address of the team's, and what people did with it since.

A POST with ``Content-Type: application/json`` and the header ``Idempotency-Key`` (also as
``X-Tocsin-Delivery``): the same for every attempt at one event, so that a repeat can be dropped. ::

    {
      "version": 1,
      "event": "alert",        alert: it rings · changed: somebody acted, or a fold has grown · test
      "id": "0190c1…",         of the delivery: what is said later about the same alert has the same
      "alert_id": "0190c0…",
      "reason": "new",         new, regressed, critical, unmuted, recovered, fold, test
      "severity": "critical",
      "text": "🔴 CRITICAL #42 new\\n…",   as a chat shows it, in TOCSIN_LANGUAGE
      "may_repeat": false,     an earlier attempt may have arrived
      "group": {               null for a fold and for a test
        "number": 42, "title": "OperationalError: …", "service": "shop", "environment": "production",
        "release": "3f9c2d1a77be", "status": "open", "severity": "critical", "category": "database",
        "exception_type": "sqlalchemy.exc.OperationalError", "culprit": "shop.orders in create_order",
        "count": 3, "first_seen": "2026-03-14T09:26:53.000000+00:00", "last_seen": "…",
        "url": "https://…/admin/debug/groups/42"                   null without TOCSIN_PUBLIC_URL
      },
      "groups": [ … ],         of a fold: all of them, the likely cause first; else the one
      "change": null,          of changed: {"status": "resolved", "by": "@anna (17)", "via": "telegram", "at": "…"}
      "at": "2026-03-14T09:26:54.123456+00:00"
    }

Any 2xx is taken for received. 401, 403, 404 and 410 park it until somebody mends it, as a redirect does
(none is followed); 429 and 503 with ``Retry-After`` are waited for; 5xx and silence are tried again with
growing pauses; any other 4xx refuses this one event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore

from tocsin import clock
from tocsin.alerts import messages, outbound
from tocsin.alerts.channels import AskedToWait, Message, Refused, Unacceptable, Unreachable
from tocsin.alerts.rules import Reason, likely_cause_first
from tocsin.settings import Settings
from tocsin.store.alerts import Subject
from tocsin.store.groups import Group

NAME = "webhook"

VERSION = 1
_LONGEST_WAIT_S = 3600.0
_MENDED_BY_PEOPLE = (401, 403, 404, 410)
_WORTH_ANOTHER_TRY = (408, 425, 429)


class Webhook:
    """The channel; its one target is the address as texts may show it."""

    name = NAME

    def __init__(self, settings: Settings, *, network: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._settings = settings
        self._network = network
        self.targets: tuple[str, ...] = (shown(settings),)

    async def send(self, address: str, message: Message) -> str | None:
        subject = message.subject
        is_test = subject is None or subject.alert.reason == Reason.TEST
        await self._post(event("test" if is_test else "alert", message, self._settings), message.key)
        return message.key or None

    async def edit(self, address: str, external_id: str, message: Message) -> None:
        await self._post(event("changed", message, self._settings), f"{external_id}-{_state(message)}")

    async def close(self) -> None:
        return None

    async def _post(self, body: dict[str, Any], key: str) -> None:
        key = key or str(body["alert_id"])
        try:
            answer = await outbound.post(
                self._settings.webhook_url or "",
                json=body,
                headers={"Idempotency-Key": key, "X-Tocsin-Delivery": key, "X-Tocsin-Event": body["event"]},
                allow_private=self._settings.webhook_allow_private,
                network=self._network,
            )
        except outbound.Closed as problem:
            raise Refused(f"{problem}; TOCSIN_WEBHOOK_ALLOW_PRIVATE=1 allows it") from None
        judge(answer.status, answer.headers, self.targets[0], clock.now())


def shown(settings: Settings) -> str:
    """The webhook's address as texts may show it."""
    try:
        return outbound.place_of(settings.webhook_url or "").shown
    except Refused:
        return "webhook"


def judge(status: int, headers: Mapping[str, str], where: str, now: datetime) -> None:
    """Raise what an answer that is not 2xx comes to."""
    if 200 <= status <= 299:
        return
    said = f"{where} answers {status}"
    if 300 <= status <= 399:
        raise Refused(f"{said}, a redirect, and none is followed; set TOCSIN_WEBHOOK_URL to where it leads")
    if status in _MENDED_BY_PEOPLE:
        raise Refused(f"{said}; check TOCSIN_WEBHOOK_URL")
    if status in (429, 503) and (pause_s := _retry_after(headers.get("retry-after", ""), now)) is not None:
        raise AskedToWait(pause_s)
    if status >= 500 or status in _WORTH_ANOTHER_TRY:
        raise Unreachable(said)
    raise Unacceptable(said)


def _retry_after(value: str, now: datetime) -> float | None:
    """Seconds to wait, at most an hour (RFC 9110, section 10.2.3: seconds or a date)."""
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _LONGEST_WAIT_S)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max((until - now).total_seconds(), 0.0), _LONGEST_WAIT_S)


def event(kind: str, message: Message, settings: Settings) -> dict[str, Any]:
    """An event's body; the module's docstring says what is in it."""
    subject = message.subject
    groups = likely_cause_first(subject.groups) if subject else []
    is_fold = subject is not None and subject.alert.reason == Reason.FOLD
    return {
        "version": VERSION,
        "event": kind,
        "id": message.key,
        "alert_id": subject.alert.id if subject else None,
        "reason": subject.alert.reason if subject else Reason.TEST,
        "severity": subject.alert.severity if subject else None,
        "text": message.plain,
        "may_repeat": subject.may_repeat if subject else False,
        "group": _group(groups[0], subject, settings) if groups and not is_fold else None,
        "groups": [_group(group, subject, settings) for group in groups],
        "change": _change(subject) if kind == "changed" else None,
        "at": clock.now().isoformat(timespec="microseconds"),
    }


def _group(group: Group, subject: Subject | None, settings: Settings) -> dict[str, Any]:
    error = subject.error if subject else None
    return {
        "number": group.number,
        "title": group.title,
        "service": group.service,
        "environment": group.environment,
        "release": (error and error.release) or group.last_release,
        "status": group.status,
        "severity": group.severity,
        "category": group.category,
        "exception_type": group.exception_type,
        "culprit": group.culprit,
        "count": group.count,
        "first_seen": group.first_seen.isoformat(timespec="microseconds"),
        "last_seen": group.last_seen.isoformat(timespec="microseconds"),
        "url": messages.group_url(group.number, settings),
    }


def _change(subject: Subject | None) -> dict[str, Any] | None:
    if subject is None or len(subject.groups) != 1 or subject.alert.reason == Reason.FOLD:
        return None
    act = subject.act
    return {
        "status": subject.groups[0].status,
        "by": act.actor if act else None,
        "via": act.via if act else None,
        "at": act.at.isoformat(timespec="microseconds") if act else None,
    }


def _state(message: Message) -> str:
    """Names how things stand, so that a further attempt at the same change has the same key."""
    subject = message.subject
    if subject is None:
        return "0"
    stands = [f"{group.number} {group.status} {group.severity}" for group in subject.groups]
    at = subject.act.at.isoformat() if subject.act else ""
    return hashlib.sha256("\n".join([*sorted(stands), at]).encode()).hexdigest()[:12]
