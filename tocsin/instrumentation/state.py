"""What is running in this process: the one capture that all hooks report to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tocsin.instrumentation.capture import Capture
    from tocsin.settings import Settings

current: Capture | None = None
settings: Settings | None = None
