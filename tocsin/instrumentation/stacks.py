"""
The stack of a live exception, as text and as frames, from a cache per code place.

Formatting 13 frames costs 340 µs, most of it the ``^^^^`` marks; the same frames at the same
instructions always give the same text. So what depends on the place is made once, scrubbed once and
kept as JSON; only the messages are made anew.
"""

from __future__ import annotations

import json
import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from tocsin.contained import pass_on
from tocsin.exporter.classify import qualified
from tocsin.exporter.frames import in_app
from tocsin.exporter.raw import (
    attributes_of,
    cause_of,
    context_of,
    get,
    is_group,
    members_of,
    module_of,
    mro_of,
    origins_of,
    qualname_of,
    traceback_of,
)
from tocsin.exporter.scrub import scrub_text
from tocsin.exporter.source import is_readable
from tocsin.text import MESSAGE_LIMIT, STACK_LIMIT, clean, shorten

MAX_FRAMES: Final = 100  # at each end of a stack
_CACHE: Final = 2000

Key = tuple[int, ...]
_quote = json.encoder.encode_basestring_ascii


@dataclass(slots=True)
class Link:
    """What one exception's traceback gives that does not change: all but the message."""

    codes: tuple[CodeType, ...]  # kept alive, so that no other code can get their ids
    text: str  #                   "Traceback (most recent call last):\n  File …", scrubbed
    frames_json: str  #            a JSON list, scrubbed
    kind: type[BaseException]  #   kept alive as well
    hint: tuple[str, str] | None = None  # for which message; ". Did you mean: 'x'?", worked out slowly


@dataclass(slots=True)
class _Spot:
    """What one frame at one instruction gives: most frames of a new place are known from another."""

    code: CodeType
    identity: tuple[str, int, str]  # by which Python tells repeated lines
    text: str
    json: str


# Classes are known by their ids: a metaclass may refuse to be hashed or compared.
_links: dict[tuple[int, Key], Link] = {}
_spots: dict[tuple[int, int], _Spot] = {}


def key_of(tb: TracebackType | None) -> Key:
    """A cheap name for the code places of a traceback; costs 4 µs for 13 frames."""
    parts: list[int] = []
    add = parts.append
    while tb is not None:
        add(id(tb.tb_frame.f_code))
        add(tb.tb_lasti)
        tb = tb.tb_next
        if len(parts) > 8 * MAX_FRAMES:  # a deep recursion is the same place at any depth
            del parts[2 * MAX_FRAMES : -2 * MAX_FRAMES]
    if len(parts) > 4 * MAX_FRAMES:
        del parts[2 * MAX_FRAMES : -2 * MAX_FRAMES]
    return tuple(parts)


def link_of(exc: BaseException, tb: TracebackType | None, key: Key) -> Link:
    """The cached part of one exception's text; made at first sight."""
    full_key = (id(type(exc)), key)
    link = _links.get(full_key)
    if link is None:
        link = _make_link(exc, tb)
        make_room(_links, _CACHE)
        _links[full_key] = link
    return link


def make_room(cache: dict[Any, Any], limit: int) -> None:
    """Drop the oldest tenth of a cache that has reached its limit."""
    if len(cache) >= limit:
        for old in list(cache)[: limit // 10]:
            cache.pop(old, None)


def forget() -> None:
    """Empty the caches."""
    _links.clear()
    _spots.clear()
    _names.clear()


def _make_link(exc: BaseException, tb: TracebackType | None) -> Link:
    entries: list[TracebackType] = []
    total, entry = 0, tb
    while entry is not None:
        entries.append(entry)
        total, entry = total + 1, entry.tb_next
        if len(entries) > 4 * MAX_FRAMES:
            del entries[MAX_FRAMES:-MAX_FRAMES]
    left_out = total - 2 * MAX_FRAMES
    if left_out > 0:
        del entries[MAX_FRAMES:-MAX_FRAMES]
    spots = _spots_of(entries)

    texts = ["Traceback (most recent call last):\n"] if spots else []
    repeated, last = 0, None
    for position, spot in enumerate(spots):
        if spot.identity != last:
            texts += _repeated_line(repeated)
            repeated, last = 0, spot.identity
        repeated += 1
        if repeated <= _SHOWN_REPEATS:
            texts.append(spot.text)
        if left_out > 0 and position == MAX_FRAMES - 1:
            texts += _repeated_line(repeated)
            texts.append(f"  [{left_out} frames left out]\n")
            repeated, last = 0, None
    texts += _repeated_line(repeated)

    return Link(
        codes=tuple(spot.code for spot in spots),
        text=shorten("".join(texts), STACK_LIMIT),
        frames_json=f"[{','.join(spot.json for spot in spots)}]",
        kind=type(exc),
    )


# As Python's traceback module does it.
_SHOWN_REPEATS: Final = 3


def _repeated_line(repeated: int) -> list[str]:
    more = repeated - _SHOWN_REPEATS
    if more <= 0:
        return []
    return [f"  [Previous line repeated {more} more time{'s' if more > 1 else ''}]\n"]


def _spots_of(entries: list[TracebackType]) -> list[_Spot]:
    keys = [(id(entry.tb_frame.f_code), entry.tb_lasti) for entry in entries]
    new = {key: entry for key, entry in zip(keys, entries, strict=True) if key not in _spots}
    if new:
        make_room(_spots, _CACHE * 4)
        _spots.update(zip(new, _make_spots(list(new.values())), strict=True))
    return [_spots[key] for key in keys]


def _make_spots(entries: list[TracebackType]) -> list[_Spot]:
    texts = _tidy_all([_text_of(entry) for entry in entries])
    spots = []
    for entry, text in zip(entries, texts, strict=True):
        code = entry.tb_frame.f_code
        line = text.split("\n", 2)[1].strip() if text.count("\n") > 1 else ""
        identity = (_exact(code.co_filename), entry.tb_lineno, _exact(code.co_name))
        spots.append(_Spot(code, identity, text, _as_json(entry.tb_frame, entry.tb_lineno, line)))
    return spots


_exact: Final = str.__str__
"""A text itself: those of code that was made by hand may be of a class of their own."""


def _text_of(entry: TracebackType) -> str:
    """A frame as Python shows it, without its line where that cannot be had."""
    code = entry.tb_frame.f_code
    file, name = _exact(code.co_filename), _exact(code.co_name)
    try:
        if is_readable(file):
            summary = _summary(entry)
            return _shown(summary) or "".join(traceback.StackSummary.from_list([summary]).format())
    except BaseException as problem:  # of a loader, or for a name that is none
        pass_on(problem)
    return f'  File "{file}", line {entry.tb_lineno}, in {name}\n'


def _summary(entry: TracebackType) -> traceback.FrameSummary:
    """
    As `traceback.extract_tb` makes it, but without a look at the file's date.

    The lines that `linecache` has are those of the code that runs; and asking the disk costs more than the rest.
    """
    code = entry.tb_frame.f_code
    file = _exact(code.co_filename)
    linecache.lazycache(file, entry.tb_frame.f_globals)
    position = next(islice(code.co_positions(), entry.tb_lasti // 2, None), (None, None, None, None))
    return traceback.FrameSummary(
        file,
        entry.tb_lineno,
        _exact(code.co_name),
        lookup_line=False,
        end_lineno=position[1],
        colno=position[2],
        end_colno=position[3],
    )


def _shown(summary: traceback.FrameSummary) -> str:
    """
    A frame as `traceback` formats it, which parses each line for an operator to mark, and is that slow.

    Returns:
        Nothing where it is no line of the plain kind, in which the marks are one row.
    """
    line = linecache.getline(summary.filename, summary.lineno or 0)
    said = line.strip()
    start, end, before = summary.colno, summary.end_colno, line.find(said)
    if (
        start is None
        or end is None
        or summary.end_lineno != summary.lineno
        or not before <= start < end <= before + len(said)
        or len(line) != before + len(said) + 1
        or not line.isascii()
        or _MARKED_APART.search(line, start, end)
    ):
        return ""
    marks = f"{' ' * (4 + start - before)}{'^' * (end - start)}\n" if end - start < len(said) else ""
    return f'  File "{summary.filename}", line {summary.lineno}, in {summary.name}\n    {said}\n{marks}'


# Operators and brackets; from 3.13 on also calls, so that hardly any line is left.
_MARKED_APART: Final = re.compile(r"[-+*/%@<>&|^\[]" if sys.version_info < (3, 13) else "")


_SEAM: Final = "\n\0\n"


def _tidy_all(texts: list[str]) -> list[str]:
    """Texts scrubbed and cleaned, in one go where that is the same: each search for secrets has its price."""
    apart = scrub_text(_SEAM.join(texts)).split(_SEAM)
    if len(apart) != len(texts):  # something reached across the seams
        apart = [scrub_text(text) for text in texts]
    return [text if text.isascii() and "\x1b" not in text else clean(text, 4000) for text in apart]


def _as_json(frame: FrameType, line: int, text: str) -> str:
    """A frame as it is stored (see `tocsin.model.Frame`); the lines around it are read by the drain."""
    code = frame.f_code
    module, file = dict.get(frame.f_globals, "__name__"), _exact(code.co_filename)
    return (
        f'{{"module":{_quote(clean(_exact(module), 200) if issubclass(type(module), str) else "unknown")}'
        f',"function":{_quote(clean(_exact(code.co_qualname), 200))}'
        f',"file":{_quote(clean(file, 500))}'
        f',"line":{line or 0}'
        f',"text":{_quote(text)}'
        f',"in_app":{"true" if is_app_file(file) else "false"}}}'
    )


_HAS_HINTS: Final = sys.version_info >= (3, 12)  # before, only the interpreter's own output had them


_HINTED: Final = (NameError, AttributeError, ImportError)
_SAID: Final[dict[type[BaseException], tuple[str, ...]]] = {
    NameError: ("name",),
    AttributeError: ("name", "obj"),
    ImportError: ("msg", "name", *(("name_from",) if sys.version_info >= (3, 12) else ())),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset", "print_file_and_line"),
}


def _plain(exc: BaseException, kind: type[BaseException]) -> BaseException:
    """What Python itself put into an exception, as one of Python's own: no notes, no chain, no code of anybody."""
    plain = kind()
    for name in _SAID[kind]:
        value = vars(kind)[name].__get__(exc)
        if type(value) is str:
            value = value[:_LONGEST_LINE]
        if name == "obj" or type(value) in (str, int):
            setattr(plain, name, value)
    return plain


_LONGEST_LINE: Final = 10_000


def _hint(exc: BaseException, message: str, link: Link) -> str:
    """What Python adds to the message of a NameError, AttributeError or ImportError."""
    if not _HAS_HINTS or not issubclass(type(exc), _HINTED):
        return ""
    if link.hint is None or link.hint[0] != message:
        found = tail = ""
        try:
            plain = _plain(exc, next(kind for kind in _HINTED if issubclass(type(exc), kind)))
            shown = traceback.TracebackException(type(plain), plain, traceback_of(exc), limit=1).format_exception_only()
            head, found, tail = "".join(shown).rstrip("\n").rpartition(". Did you mean")
        except BaseException as problem:  # it looks into the user's objects
            pass_on(problem)
            head = ""
        link.hint = (message, scrub_text(found + tail) if head and found else "")
    return link.hint[1]


@lru_cache(maxsize=4096)
def is_app_file(file: str) -> bool:
    """Whether a file is the team's own code: under the working folder or a plain path, in no library."""
    return in_app(file, (str(Path.cwd()),)) and not file.startswith(_OWN_FOLDER)


_OWN_FOLDER: Final = str(Path(__file__).resolve().parent.parent) + os.sep


def safe_message(exc: BaseException) -> str:
    """``str(exc)``, whatever the class does in it: cut, cleaned and scrubbed; a placeholder where it fails."""
    try:
        text = str(exc)
    except BaseException as problem:
        # It is the exception's own code that raised: nobody asked for this interrupt or exit.
        pass_on(problem)
        if issubclass(type(problem), RecursionError) and _is_short_of_frames():
            raise
        return "<exception str() failed>"
    return tidy(_exact(text))


def _is_short_of_frames() -> bool:
    """Whether it is the stack of whoever reports the error that is nearly used up."""
    try:
        sys._getframe(sys.getrecursionlimit() - _FRAMES_FOR_STR)
    except ValueError:
        return False
    return True


_FRAMES_FOR_STR: Final = 150


def tidy(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Scrubbed, cut, cleaned; in this order, since half a secret has no shape."""
    return clean(scrub_text(text), limit)


def stack_text(exc: BaseException, message: str, tb: TracebackType | None, key: Key) -> str:
    """
    The whole text, as `traceback.format_exception` has it, with causes and contexts.

    Args:
        message: the exception's own, tidied.
        tb: where its stack begins; the frames of whoever reports it where it was never raised.
        key: of `tb`.
    """
    if not is_group(exc) and cause_of(exc) is None and context_of(exc) is None:
        link = link_of(exc, tb, key)
        return shorten(link.text + _last_line(exc, message, link), STACK_LIMIT)
    return shorten(_whole_text(exc, message, link_of(exc, tb, key), _Drawing()), STACK_LIMIT)


@dataclass(slots=True)
class _Drawing:
    """How deep a text is within groups, whether the innermost is to be closed, how much may still be shown."""

    depth: int = 0
    is_open: bool = False
    left: int = 200

    def indent(self) -> str:
        return "  " * self.depth

    def indented(self, text: str) -> str:
        if self.depth == 0:
            return text
        margin = f"{self.indent()}| "
        return "".join(margin + line for line in text.splitlines(keepends=True))


def _whole_text(exc: BaseException, message: str, link: Link, drawing: _Drawing) -> str:
    """One exception after what led to it."""
    chain = origins_of(exc)
    drawing.left -= len(chain)
    text = ""
    for before, after in reversed(list(zip(chain, [exc, *chain], strict=False))):
        tb = traceback_of(before)
        text += _own_text(before, safe_message(before), link_of(before, tb, key_of(tb)), drawing)
        text += drawing.indented(_BY_CAUSE if cause_of(after) is before else _BY_CONTEXT)
    return text + _own_text(exc, message, link, drawing)


def _own_text(exc: BaseException, message: str, link: Link, drawing: _Drawing) -> str:
    own = link.text + _last_line(exc, message, link)
    return _group_text(exc, own, drawing) if is_group(exc) else drawing.indented(own)


_BY_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_BY_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _last_line(exc: BaseException, message: str, link: Link) -> str:
    name = _shown_type(type(exc))
    if issubclass(type(exc), SyntaxError):
        *where, said = traceback.format_exception_only(_plain(exc, SyntaxError))
        text = tidy("".join((*where, name, said.removeprefix("SyntaxError"))))
    else:
        text = f"{name}: {message}{_hint(exc, message, link)}\n" if message else f"{name}\n"
    notes = get(attributes_of(exc), "__notes__")
    if type(notes) is list:
        for note in notes[:20]:
            text += (tidy(note, 2000) if type(note) is str else "<a note that is no text>") + "\n"
    return text


# As Python's traceback module has them.
_MAX_WIDTH: Final = 15
_MAX_DEPTH: Final = 10


def _group_text(exc: BaseException, own: str, drawing: _Drawing) -> str:
    """A group and its members as `traceback` draws them, which would format a hundred thousand to show fifteen."""
    if drawing.depth > _MAX_DEPTH:
        return drawing.indented(f"... (max_group_depth is {_MAX_DEPTH})\n")
    is_top = drawing.depth == 0
    drawing.depth += is_top
    if own.startswith("Traceback"):
        text = drawing.indented(f"Exception Group {own}")
        text = text.replace("|", "+", 1) if is_top else text
    else:
        text = drawing.indented(own)
    members = members_of(exc)
    shown = members[: max(min(_MAX_WIDTH, drawing.left), 0)]
    more = len(members) - len(shown)
    drawing.left -= len(shown)
    drawing.is_open = False
    for position in range(len(shown) + bool(more)):
        is_cut = position == len(shown)
        drawing.is_open = position == len(shown) + bool(more) - 1
        head = "..." if is_cut else str(position + 1)
        text += f"{drawing.indent()}{'  ' if position else '+-'}+---------------- {head} ----------------\n"
        drawing.depth += 1
        if is_cut:
            text += drawing.indented(f"and {more} more exception{'s' if more > 1 else ''}\n")
        else:
            member, tb = shown[position], traceback_of(shown[position])
            text += _whole_text(member, safe_message(member), link_of(member, tb, key_of(tb)), drawing)
        if drawing.is_open:
            text += f"{drawing.indent()}+------------------------------------\n"
            drawing.is_open = False
        drawing.depth -= 1
    drawing.depth -= is_top
    return text


@dataclass(frozen=True, slots=True)
class _Names:
    kind: type[BaseException]  # kept alive
    shown: str  #              as tracebacks have it
    all: tuple[str, ...]  #    qualified, of the type and its bases


_names: dict[int, _Names] = {}


def _names_of(kind: type[BaseException]) -> _Names:
    found = _names.get(id(kind))
    if found is None:
        module, name = module_of(kind), qualname_of(kind)
        if module is None:
            shown = f"<unknown>.{name}"
        else:
            shown = name if module in {"builtins", "__main__"} else f"{module}.{name}"
        bases = tuple(
            clean(qualified(base), 300) for base in mro_of(kind) if base is not BaseException and base is not object
        )
        make_room(_names, _CACHE)
        found = _names[id(kind)] = _Names(kind, clean(shown, 300), bases or (clean(qualified(kind), 300),))
    return found


def names_of(kind: type[BaseException]) -> tuple[str, ...]:
    """The qualified name of a type and of its bases."""
    return _names_of(kind).all


def _shown_type(kind: type[BaseException]) -> str:
    return _names_of(kind).shown


def caller_stack(exc: BaseException, message: str) -> tuple[str, str]:
    """Text and frames (JSON) for an exception that was never raised: the stack of who reports it."""
    frames: list[FrameType] = []
    frame = caller()
    while frame is not None and len(frames) < 30:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    entries = [TracebackType(None, frame, frame.f_lasti, frame.f_lineno) for frame in frames]
    spots = _spots_of(entries)
    text = "".join(spot.text for spot in spots)
    last = f"{_shown_type(type(exc))}: {message}\n"
    return f"Traceback (most recent call last):\n{text}{last}", f"[{','.join(spot.json for spot in spots)}]"


def caller(skip: Callable[[str], bool] | None = None) -> FrameType | None:
    """The innermost frame outside tocsin (and outside what `skip` names by its file)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = _exact(frame.f_code.co_filename)
        if not file.startswith(_OWN_FOLDER) and not (skip and skip(file)):
            return frame
        frame = frame.f_back
    return None
