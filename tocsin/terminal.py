"""What commands write to a terminal: aligned, coloured where that helps, and safe to look at."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

from tocsin.text import clean, one_line

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}

COLOURS = {
    "critical": "magenta",
    "high": "red",
    "medium": "yellow",
    "low": "dim",
    "open": "red",
    "acknowledged": "yellow",
    "resolved": "green",
    "muted": "dim",
    "ignored": "dim",
    "failed": "red",
    "missing": "red",
    "running": "yellow",
    "done": "green",
    "discarded": "dim",
    "ok": "green",
    "off": "dim",
    "FAIL": "red",
}
"""The colour of a word that stands in a column of its own."""


def has_colours(stream: TextIO) -> bool:
    """
    Whether a stream shows colours: a terminal, and nobody asked for none.

    Source: no-color.org; set to nothing does not count as set.
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: str | None, stream: TextIO | None = None) -> str:
    """The text in a colour (a key of the table above), or as it is where the stream shows none."""
    code = _CODES.get(colour or "")
    return f"\x1b[{code}m{text}\x1b[0m" if code and has_colours(stream or sys.stdout) else text


def safe(value: object) -> str:
    """A value on one line, with nothing in it that steers a terminal; "" for None."""
    return "" if value is None else one_line(clean(str(value)), 2000)


def moment(value: datetime | str | None) -> str:
    """A time as people read it, UTC to the second; takes ISO text too."""
    if value is None:
        return ""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], stream: TextIO | None = None) -> str:
    """
    Rows in aligned columns; numbers to the right, the last column cut at a terminal's edge.

    Args:
        heads: one for each column.
    """
    stream = stream or sys.stdout
    cells = [[safe(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    import shutil  # noqa: PLC0415  (of `tocsin run`, which prints no table, a program waits for this)

    width = shutil.get_terminal_size().columns if stream.isatty() else None
    lines = [painted(_aligned(heads, widths, [], width), "bold", stream)]
    for row, shown in zip(rows, cells, strict=True):
        numbers = [index for index, value in enumerate(row) if isinstance(value, int)]
        line = _aligned(shown, widths, numbers, width)
        lines.append(_with_colours(line, shown, widths, stream))
    return "\n".join(lines)


def _aligned(cells: Sequence[str], widths: Sequence[int], numbers: Sequence[int], width: int | None) -> str:
    padded = [
        cell.rjust(size) if index in numbers else cell.ljust(size)
        for index, (cell, size) in enumerate(zip(cells, widths, strict=True))
    ]
    line = "  ".join(padded).rstrip()
    return line if width is None or len(line) <= width else line[: max(width - 1, 1)] + "…"


def _with_colours(line: str, cells: Sequence[str], widths: Sequence[int], stream: TextIO) -> str:
    """Colours come after the aligning, from the right, since their codes have a length but no width."""
    starts = [sum(widths[:index]) + 2 * index for index in range(len(widths))]
    for start, cell in reversed(list(zip(starts, cells, strict=True))):
        if cell in COLOURS and line[start : start + len(cell)] == cell:
            line = line[:start] + painted(cell, COLOURS[cell], stream) + line[start + len(cell) :]
    return line
