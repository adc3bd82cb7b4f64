"""
Frames as text, one a line: a third of the work for a database that stacks of objects are.

Those that capture made are kept as they are, with source lines around; these say what a stack's text says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tocsin.model import Frame

_LINE_END = "\n"


def pack(frames: Iterable[Frame]) -> str:
    """Frames as one text; what parts them is taken out of their names."""
    return "\n".join(
        f"{_name(one.module)}\t{_name(one.function)}\t{_name(one.file)}\t{one.line}\t{'+' if one.in_app else '-'}"
        f"\t{one.text.replace(_LINE_END, ' ')}"
        for one in frames
    )


def unpack(text: str) -> list[dict[str, Any]]:
    """The frames in the form in which capture writes them; a line that is none is left out."""
    frames = []
    for line in text.split("\n"):
        parts = line.split("\t", 5)
        if len(parts) == 6 and parts[3].isdecimal():
            module, function, file, number, own, source = parts
            shown = {"module": module, "function": function, "file": file, "line": int(number)}
            frames.append(shown | {"text": source, "in_app": own == "+"})
    return frames


def _name(text: str) -> str:
    return text.replace("\t", " ").replace(_LINE_END, " ")
