"""Groups, errors and alerts for tests of what is pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tocsin import ids
from tocsin.lifecycle import Status
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store.alerts import Alert, ErrorSeen, Fold, LastAlert, Subject
from tocsin.store.groups import Group, Mark

NOW = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)


def group(number: int = 42, **values: Any) -> Group:
    """An open, new, high group, unless a test says otherwise."""
    defaults: dict[str, Any] = {
        "id": f"group-{number}",
        "number": number,
        "fingerprint": f"1-{number}",
        "title": "KeyError: 'phone'",
        "culprit": "shop.orders in create_order",
        "service": "shop",
        "environment": "production",
        "exception_type": "KeyError",
        "severity": Severity.HIGH,
        "category": "unknown",
        "status": Status.OPEN,
        "first_seen": NOW - timedelta(hours=1),
        "last_seen": NOW,
        "count": 1,
        "users": 0,
        "resolved_at": None,
        "resolved_by": None,
        "resolved_in_release": None,
        "muted_until": None,
        "mute_until_count": None,
        "regressions": 0,
        "last_release": "v1",
        "last_error_id": None,
        "mark": Mark.NEW,
        "marked_at": NOW,
        "rows_pending": False,
    }
    return Group(**{**defaults, **values})


def last(severity: Severity = Severity.HIGH, reason: str = "new") -> LastAlert:
    return LastAlert(
        id="a", group_id="group-42", reason=reason, severity=severity, created_at=NOW - timedelta(hours=1), fold_id=None
    )


def fold(members: int, *, age_s: float = 5, idle_s: float = 5, severity: Severity = Severity.HIGH) -> Fold:
    return Fold(
        id="fold",
        severity=severity,
        created_at=NOW - timedelta(seconds=age_s),
        last_at=NOW - timedelta(seconds=idle_s),
        group_ids=[f"old-{number}" for number in range(members)],
    )


def subject(*groups: Group, reason: str = "new", error: ErrorSeen | None = None, **values: Any) -> Subject:
    alert = Alert(
        id=ids.uuid7(),
        created_at=NOW,
        reason=reason,
        group_id=groups[0].id if groups and reason != "fold" else None,
        severity=max((one.severity for one in groups), key=lambda one: one.rank, default=Severity.LOW),
        service="shop",
        environment="production",
        details={},
    )
    return Subject(alert=alert, groups=list(groups), error=error, **values)


def seen(**values: Any) -> ErrorSeen:
    frames = [
        {"module": "shop.app", "function": "main", "file": "shop/app.py", "line": 7, "text": "run()", "in_app": True},
        {"module": "shop.orders", "function": "create_order", "file": "shop/orders.py", "line": 42, "in_app": True},
        {"module": "json", "function": "loads", "file": "/lib/json.py", "line": 9, "in_app": False},
    ]
    defaults: dict[str, Any] = {
        "message": "'phone'",
        "exception_type": "KeyError",
        "release": "v2",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "timestamp": NOW,
        "context": {"tocsin.frames": frames},
    }
    return ErrorSeen(**{**defaults, **values})


def plain_settings(**values: Any) -> Settings:
    return Settings(database_url="sqlite:///unused", **values)
