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
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from tocsin.exporter.classify import qualified
from tocsin.exporter.frames import in_app
from tocsin.exporter.scrub import scrub_text
from tocsin.text import MESSAGE_LIMIT, STACK_LIMIT, clean, shorten

MAX_LINKS: Final = 50
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
    hint: str = ""  #              ". Did you mean: 'x'?", which Python works out slowly


@dataclass(slots=True)
class _Spot:
    """What one frame at one instruction gives: most frames of a new place are known from another."""

    code: CodeType
    identity: tuple[str, int, str]  # by which Python tells repeated lines
    text: str
    json: str


_links: dict[tuple[type[BaseException], Key], Link] = {}
_spots: dict[tuple[int, int], _Spot] = {}


def key_of(tb: TracebackType | None) -> Key:
    """A cheap name for the code places of a traceback; costs 4 µs for 13 frames."""
    parts: list[int] = []
    add = parts.append
    while tb is not None:
        add(id(tb.tb_frame.f_code))
        add(tb.tb_lasti)
        tb = tb.tb_next
    if len(parts) > 4 * MAX_FRAMES:  # a deep recursion is the same place at any depth
        del parts[2 * MAX_FRAMES : -2 * MAX_FRAMES]
    return tuple(parts)


def link_of(exc: BaseException, tb: TracebackType | None, key: Key) -> Link:
    """The cached part of one exception's text; made at first sight."""
    full_key = (type(exc), key)
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
    entry = tb
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    left_out = len(entries) - 2 * MAX_FRAMES
    if left_out > 0:
        entries = entries[:MAX_FRAMES] + entries[-MAX_FRAMES:]
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
        hint=_hint(exc),
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
    texts = _tidy_all(["".join(traceback.StackSummary.from_list([_summary(entry)]).format()) for entry in entries])
    spots = []
    for entry, text in zip(entries, texts, strict=True):
        code = entry.tb_frame.f_code
        line = text.split("\n", 2)[1].strip() if text.count("\n") > 1 else ""
        identity = (code.co_filename, entry.tb_lineno, code.co_name)
        spots.append(_Spot(code, identity, text, _as_json(entry.tb_frame, entry.tb_lineno, line)))
    return spots


def _summary(entry: TracebackType) -> traceback.FrameSummary:
    """
    As `traceback.extract_tb` makes it, but without a look at the file's date.

    The lines that `linecache` has are those of the code that runs; and asking the disk costs more than the rest.
    """
    code = entry.tb_frame.f_code
    linecache.lazycache(code.co_filename, entry.tb_frame.f_globals)
    position = next(islice(code.co_positions(), entry.tb_lasti // 2, None), (None, None, None, None))
    return traceback.FrameSummary(
        code.co_filename,
        entry.tb_lineno,
        code.co_name,
        lookup_line=False,
        end_lineno=position[1],
        colno=position[2],
        end_colno=position[3],
    )


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
    module = frame.f_globals.get("__name__")
    return (
        f'{{"module":{_quote(clean(module, 200) if isinstance(module, str) else "unknown")}'
        f',"function":{_quote(clean(code.co_qualname, 200))}'
        f',"file":{_quote(clean(code.co_filename, 500))}'
        f',"line":{line or 0}'
        f',"text":{_quote(text)}'
        f',"in_app":{"true" if is_app_file(code.co_filename) else "false"}}}'
    )


def _hint(exc: BaseException) -> str:
    """What Python adds to the message of a NameError, AttributeError or ImportError."""
    if not isinstance(exc, (NameError, AttributeError, ImportError)):
        return ""
    try:
        shown = "".join(
            traceback.TracebackException(type(exc), exc, exc.__traceback__, limit=1).format_exception_only()
        )
        head, found, tail = shown.rstrip("\n").rpartition(". Did you mean")
    except Exception:
        return ""
    return scrub_text(found + tail) if head and found else ""


@lru_cache(maxsize=4096)
def is_app_file(file: str) -> bool:
    """Whether a file is the team's own code: under the working folder or a plain path, in no library."""
    return in_app(file, (str(Path.cwd()),)) and not file.startswith(_OWN_FOLDER)


_OWN_FOLDER: Final = str(Path(__file__).resolve().parent.parent) + os.sep
_STDLIB: Final = sysconfig.get_paths()["stdlib"]


def safe_message(exc: BaseException) -> str:
    """``str(exc)``, whatever the class does in it: cut, cleaned and scrubbed; a placeholder where it fails."""
    try:
        text = str(exc)
        if type(text) is not str:
            text = str.__str__(text)
        return tidy(text)
    except RecursionError:
        return "<exception str() failed>"
    except BaseException:
        # It is the exception's own code that raised: nobody asked for this interrupt or exit.
        return "<exception str() failed>"


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
    if isinstance(exc, BaseExceptionGroup):
        return _group_text(exc)
    link = link_of(exc, tb, key)
    own = link.text + _last_line(exc, message, link.hint)
    if exc.__cause__ is None and (exc.__context__ is None or exc.__suppress_context__):
        return shorten(own, STACK_LIMIT)
    parts = [own]
    for before, connective in _chain(exc):
        link = link_of(before, before.__traceback__, key_of(before.__traceback__))
        parts.append(connective)
        parts.append(link.text + _last_line(before, safe_message(before), link.hint))
    return shorten("".join(reversed(parts)), STACK_LIMIT)


_BY_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_BY_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _chain(exc: BaseException) -> list[tuple[BaseException, str]]:
    """What led to an exception, nearest first, and the words that join it to the one after it."""
    found: list[tuple[BaseException, str]] = []
    seen = {id(exc)}
    while len(found) < MAX_LINKS:
        if exc.__cause__ is not None:
            before, connective = exc.__cause__, _BY_CAUSE
        elif exc.__context__ is not None and not exc.__suppress_context__:
            before, connective = exc.__context__, _BY_CONTEXT
        else:
            break
        if id(before) in seen:
            break
        seen.add(id(before))
        found.append((before, connective))
        exc = before
    return found


def causes_of(exc: BaseException) -> list[BaseException]:
    """The exceptions that led to this one, nearest first; cycles and long chains are cut."""
    return [before for before, _ in _chain(exc)]


def _last_line(exc: BaseException, message: str, hint: str) -> str:
    if isinstance(exc, SyntaxError):
        try:
            return tidy("".join(traceback.format_exception_only(exc)))
        except Exception:
            return f"{_shown_type(type(exc))}: {message}\n"
    name = _shown_type(type(exc))
    text = f"{name}: {message}{hint}\n" if message else f"{name}\n"
    notes = getattr(exc, "__notes__", None) if "__notes__" in _dict_of(exc) else None
    if isinstance(notes, list):
        for note in notes[:20]:
            text += (tidy(note, 2000) if isinstance(note, str) else "<note>") + "\n"
    return text


def _dict_of(exc: BaseException) -> dict[str, Any]:
    """The exception's attributes, past whatever its class does to attribute access."""
    return object.__getattribute__(exc, "__dict__")  # type: ignore[no-any-return]


def _group_text(exc: BaseException) -> str:
    try:
        lines = traceback.TracebackException.from_exception(exc, limit=50, max_group_width=15, max_group_depth=10)
        text = "".join(lines.format())
    except Exception:
        text = f"{_shown_type(type(exc))}: {safe_message(exc)}\n"
    return tidy(text, STACK_LIMIT)


@dataclass(frozen=True, slots=True)
class _Names:
    shown: str  #              as tracebacks have it
    all: tuple[str, ...]  #    qualified, of the type and its bases


_names: dict[type[BaseException], _Names] = {}


def _names_of(kind: type[BaseException]) -> _Names:
    found = _names.get(kind)
    if found is None:
        is_bare = kind.__module__ in {"builtins", "__main__"}
        shown = kind.__qualname__ if is_bare else f"{kind.__module__}.{kind.__qualname__}"
        bases = tuple(clean(qualified(base), 300) for base in kind.__mro__ if base not in {BaseException, object})
        make_room(_names, _CACHE)
        found = _names[kind] = _Names(clean(shown, 300), bases or (clean(qualified(kind), 300),))
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
        file = frame.f_code.co_filename
        if not file.startswith(_OWN_FOLDER) and not (skip and skip(file)):
            return frame
        frame = frame.f_back
    return None
