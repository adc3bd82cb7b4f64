"""
What people see of an error: also of a row that another program has written, and nothing has cleaned.

Such a row has its stack as text alone, and stays as it is; so its frames are read whenever they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tocsin import packing, semconv
from tocsin.exporter import frames
from tocsin.exporter.scrub import scrub_text
from tocsin.text import MESSAGE_LIMIT, STACK_LIMIT


def frames_of(context: Mapping[str, Any], stack: str | None) -> list[dict[str, Any]]:
    """An error's frames, outermost first: those that came with it, else what its stack says."""
    if semconv.FRAMES in context:
        found = context[semconv.FRAMES]
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return [packing.shown(one) for one in frames.parse(scrub_text(_cut(stack)))] if stack else []


def message_of(message: str) -> str:
    """What an error says, without secrets: it leaves the house with a message."""
    return scrub_text(message[:MESSAGE_LIMIT])


def _cut(stack: str) -> str:
    half = STACK_LIMIT // 2
    return stack if len(stack) <= STACK_LIMIT else f"{stack[:half]}\n…\n{stack[-half:]}"
