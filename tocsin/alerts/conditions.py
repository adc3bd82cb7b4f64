"""
What the server itself finds to be wrong, as errors: something is missing, is silent, or grows.

Each is an error of a group of its own, which rings as any other, and ends with a `Recovery`.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from tocsin.exporter.fingerprint import VERSION
from tocsin.ids import uuid7
from tocsin.model import ErrorRecord, Severity


def begun(
    key: str,
    title: str,
    *,
    now: datetime,
    severity: Severity,
    service: str,
    environment: str,
    category: str = "unknown",
    message: str = "",
    context: dict[str, Any] | None = None,
    instance_id: str | None = None,
) -> ErrorRecord:
    """
    The error that a condition is when it begins.

    Args:
        key: what makes two of them the same group within a service: "beat:nightly", "silence".
        title: what people read in a list.
        message: what there is to say of this one; the title by default.
    """
    return ErrorRecord(
        id=uuid7(int(now.timestamp() * 1e9)),
        timestamp=now,
        severity=severity,
        category=category,
        message=message or title,
        fingerprint=f"{VERSION}-{hashlib.sha256(key.encode()).hexdigest()[:24]}",
        title=title,
        service=service,
        environment=environment,
        context=context or {},
        handled=False,
        mechanism="tocsin",
        instance_id=instance_id,
    )
