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
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from tocsin.exporter.classify import qualified
from tocsin.exporter.frames import in_app
from tocsin.exporter.scrub import scrub_text
from tocsin.text import MESSAGE_LIMIT, STACK_LIMIT, clean, shorten

MAX_LINKS: Final = 50
MAX_FRAMES: Final = 100  # at each end of a stack
SOURCE_LINES: Final = 5  # around a line
SOURCE_FRAMES: Final = 10  # the innermost of the team's own
_CACHE: Final = 2000

Key = tuple[int, ...]
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(slots=True)
class Link:
    """What one exception's traceback gives that does not change: all but the message."""

    codes: tuple[CodeType, ...]  # kept alive, so that no other code can get their ids
    text: str  #                   "Traceback (most recent call last):\n  File …", scrubbed
    frames_json: str  #            a JSON list, scrubbed
    hint: str = ""  #              ". Did you mean: 'x'?", which Python works out slowly


_links: dict[tuple[type[BaseException], Key], Link] = {}


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
        if len(_links) >= _CACHE:
            for old in list(_links)[: _CACHE // 10]:
                _links.pop(old, None)
        _links[full_key] = link
    return link


def forget() -> None:
    """Empty the cache."""
    _links.clear()


def _make_link(exc: BaseException, tb: TracebackType | None) -> Link:
    codes, frames = [], []
    walker = tb
    while walker is not None:
        frames.append((walker.tb_frame, walker.tb_lineno))
        codes.append(walker.tb_frame.f_code)
        walker = walker.tb_next
    left_out = len(frames) - 2 * MAX_FRAMES
    if left_out > 0:
        frames = frames[:MAX_FRAMES] + frames[-MAX_FRAMES:]
        lines = traceback.extract_tb(tb, limit=MAX_FRAMES).format()
        lines.append(f"  [{left_out} frames left out]\n")
        lines += traceback.extract_tb(tb, limit=-MAX_FRAMES).format()
    else:
        lines = traceback.extract_tb(tb).format() if tb is not None else []
    text = "Traceback (most recent call last):\n" + "".join(lines) if lines else ""
    return Link(
        codes=tuple(codes[:MAX_FRAMES] + codes[-MAX_FRAMES:]),
        text=clean(scrub_text(text), STACK_LIMIT),
        frames_json=_encode(describe(frames)),
        hint=_hint(exc),
    )


def _hint(exc: BaseException) -> str:
    """What Python adds to the message of a NameError, AttributeError or ImportError."""
    if not isinstance(exc, (NameError, AttributeError, ImportError)):
        return ""
    try:
        shown = "".join(traceback.TracebackException(type(exc), exc, exc.__traceback__, limit=1).format_exception_only())
        head, found, tail = shown.rstrip("\n").rpartition(". Did you mean")
    except Exception:
        return ""
    return scrub_text(found + tail) if head and found else ""


def describe(frames: list[tuple[FrameType, int]]) -> list[dict[str, Any]]:
    """
    Frames as they are stored, outermost first, with source lines around the team's own.

    Args:
        frames: (frame, line number), outermost first.
    """
    described = []
    with_source = SOURCE_FRAMES
    for frame, line in reversed(frames):
        code = frame.f_code
        is_own = is_app_file(code.co_filename)
        entry: dict[str, Any] = {
            "module": _module(frame),
            "function": code.co_qualname,
            "file": clean(code.co_filename, 500),
            "line": line,
            "text": _source(code.co_filename, line, frame),
            "in_app": is_own,
        }
        if is_own and with_source:
            with_source -= 1
            first = max(line - SOURCE_LINES, 1)
            entry["before"] = [_source(code.co_filename, at, frame, strip=False) for at in range(first, line)]
            after = [_source(code.co_filename, at, frame, strip=False) for at in range(line + 1, line + 1 + SOURCE_LINES)]
            entry["after"] = after[: _end_of_source(code.co_filename) - line] if after else after
        described.append(entry)
    described.reverse()
    return described


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return clean(name, 200) if isinstance(name, str) else "unknown"


def _source(file: str, line: int, frame: FrameType, *, strip: bool = True) -> str:
    text = linecache.getline(file, line, frame.f_globals).rstrip("\n")
    return clean(scrub_text(shorten(text.strip() if strip else text, 400)), 500)


def _end_of_source(file: str) -> int:
    return len(linecache.getlines(file))


@lru_cache(maxsize=4096)
def is_app_file(file: str) -> bool:
    """Whether a file is the team's own code: under the working folder or a plain path, in no library."""
    return in_app(file, (os.getcwd(),)) and not file.startswith(_OWN_FOLDER)


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
    """Cut, cleaned, scrubbed."""
    return clean(scrub_text(shorten(text, limit)), limit)


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
    own = link_of(exc, tb, key).text + _last_line(exc, message, link_of(exc, tb, key).hint)
    if exc.__cause__ is None and (exc.__context__ is None or exc.__suppress_context__):
        return shorten(own, STACK_LIMIT)
    parts = [own]
    for before, connective in _chain(exc):
        before_key = key_of(before.__traceback__)
        link = link_of(before, before.__traceback__, before_key)
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


@lru_cache(maxsize=1024)
def _shown_type(kind: type[BaseException]) -> str:
    """A type's name as tracebacks have it."""
    return kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"


@lru_cache(maxsize=1024)
def names_of(kind: type[BaseException]) -> tuple[str, ...]:
    """The qualified name of a type and of its bases."""
    return tuple(qualified(base) for base in kind.__mro__ if base not in (BaseException, object))


def caller(skip: Callable[[str], bool] | None = None) -> FrameType | None:
    """The innermost frame outside tocsin (and outside what `skip` names by its file)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OWN_FOLDER) and not (skip and skip(file)):
            return frame
        frame = frame.f_back
    return None
