"""
Frames as text, one a line, and deflated: a fifth of the work for a database that stacks of objects are.

Those that capture made are kept as they are, with source lines around; these say what a stack's text says.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable
from typing import Any

from tocsin.model import Frame

_LINE_END = "\n"
_DEFLATED = "zlib:"
_MOST_BYTES = 2**20


def shown(frame: Frame) -> dict[str, Any]:
    """A frame in the form in which capture writes it."""
    return {
        "module": frame.module,
        "function": frame.function,
        "file": frame.file,
        "line": frame.line,
        "text": frame.text,
        "in_app": frame.in_app,
    }


def pack(frames: Iterable[Frame]) -> str:
    """Frames as one text of ASCII; what parts them is taken out of their names."""
    lines = "\n".join(
        f"{_name(one.module)}\t{_name(one.function)}\t{_name(one.file)}\t{one.line}\t{'+' if one.in_app else '-'}"
        f"\t{one.text.replace(_LINE_END, ' ')}"
        for one in frames
    )
    return _DEFLATED + base64.b64encode(zlib.compress(lines.encode("utf-8", "backslashreplace"), 6)).decode()


def unpack(text: str) -> list[dict[str, Any]]:
    """The frames in the form in which capture writes them; what is none is left out."""
    frames = []
    for line in _lines(text).split("\n"):
        parts = line.split("\t", 5)
        if len(parts) == 6 and parts[3].isdecimal():
            module, function, file, number, own, source = parts
            shown = {"module": module, "function": function, "file": file, "line": int(number)}
            frames.append(shown | {"text": source, "in_app": own == "+"})
    return frames


def _lines(text: str) -> str:
    """The lines that were packed; others than `pack` may write to the table, too."""
    if not text.startswith(_DEFLATED):
        return text
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(text[len(_DEFLATED) :]), _MOST_BYTES)
    except (binascii.Error, zlib.error, ValueError):
        return ""
    return data.decode("utf-8", "replace")


def _name(text: str) -> str:
    return text.replace("\t", " ").replace(_LINE_END, " ")
