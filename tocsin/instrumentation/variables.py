"""
The local variables of the team's own frames, as text that is safe to keep: with `TOCSIN_LOCALS`, else never.

They are the most telling part of an error and the most dangerous one: objects that load something when they are
looked at, secrets under any name, megabytes. So only what Python itself brings is looked into, by its own methods;
of all else the class is named. Each value is scrubbed by its name and by its shape, and all of them are bounded.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import islice
from types import BuiltinFunctionType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, Final

from tocsin.contained import contained, pass_on
from tocsin.exporter.classify import qualified
from tocsin.exporter.raw import module_of
from tocsin.exporter.scrub import FAILED, MASK, is_secret_key, scrub_text, scrub_value
from tocsin.instrumentation import stacks
from tocsin.text import clean, shorten

FRAMES: Final = 5
"""The innermost of the team's own."""

NAMES: Final = 20
TEXT_CHARS: Final = 200
VALUE_CHARS: Final = 500
ALL_BYTES: Final = 8 * 1024
"""The most of one frame's names, of a text, of a variable, and of all that an error has, as JSON."""

_DEPTH: Final = 3
_BREADTH: Final = 10
_NAME_CHARS: Final = 100
_MOST_ENTRIES: Final = 200

is_kept = False


def keep(wanted: bool) -> None:
    """Keep them with each error from now on, or not."""
    global is_kept
    is_kept = wanted


def with_values(frames_json: str, tb: TracebackType | None) -> str:
    """
    An error's frames with the variables of the innermost that are the team's own.

    Args:
        frames_json: as `tocsin.instrumentation.stacks` has it; its end is the end of `tb`.
        tb: None where the error was never raised: the frames of whoever reports it.
    """
    with contained("reading local variables"):
        found = json.loads(frames_json)
        left = ALL_BYTES
        has_values = False
        wanted = [pair for pair in zip(reversed(found), _innermost(tb), strict=False) if pair[0]["in_app"]][:FRAMES]
        for shown, frame in wanted:
            values, left = _values(frame, left)
            if values:
                shown["vars"] = values
                has_values = True
        if has_values:
            return _encode(found)
    return frames_json


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _innermost(tb: TracebackType | None) -> Sequence[FrameType]:
    """Frames, the innermost first."""
    frames: deque[FrameType] = deque(maxlen=_MOST_ENTRIES)
    while tb is not None:
        frames.appendleft(tb.tb_frame)
        tb = tb.tb_next
    frame = None if frames else stacks.caller()
    while frame is not None and len(frames) < _MOST_ENTRIES:
        frames.append(frame)
        frame = frame.f_back
    return list(frames)


def _values(frame: FrameType, left: int) -> tuple[dict[str, str], int]:
    """Its variables as text, and how many bytes are left after them."""
    found: dict[str, str] = {}
    is_module = frame.f_code.co_name == "<module>"
    values = frame.f_locals
    if type(values) is not dict and type(values).__name__ != "FrameLocalsProxy":  # a class's, made by its metaclass
        return found, left
    for name, value in list(values.items()):
        if len(found) >= NAMES:
            break
        if type(name) is not str or name.startswith("__") or (is_module and type(value) in _OF_MODULES):
            continue
        one = {clean(name, _NAME_CHARS): _text(name, value)}
        size = len(_encode(one))
        if size > left:
            break
        found |= one
        left -= size
    return found, left


_OF_MODULES: Final = (ModuleType, FunctionType, BuiltinFunctionType, type)


def _text(name: str, value: object) -> str:
    try:
        if is_secret_key(name):
            return MASK
        # Once more as a whole: what was split into its parts may be a secret only beside its name.
        return shorten(scrub_text(_shown(value, 0, set())), VALUE_CHARS)
    except BaseException as problem:  # a container that another thread changes meanwhile
        pass_on(problem)
        return FAILED


def _shown(value: object, depth: int, above: set[int]) -> str:
    """A value as Python would write it; `issubclass`, since `isinstance` would ask the object too."""
    kind = type(value)
    if value is None or kind is bool or kind is complex:
        return repr(value)
    if issubclass(kind, Enum):
        return f"{qualified(kind)}.{object.__getattribute__(value, '__dict__')['_name_']}"
    if issubclass(kind, float):
        return repr(float.__float__(value))  # type: ignore[arg-type]
    if issubclass(kind, int):
        return str(scrub_value(int.__int__(value)))  # type: ignore[arg-type]
    if issubclass(kind, str):
        return repr(scrub_value(str.__str__(value), limit=TEXT_CHARS))
    if kind is bytes or kind is bytearray:
        return f"b{scrub_value(value, limit=TEXT_CHARS)!r}"
    for base, brackets in _CONTAINERS:
        if issubclass(kind, base):
            if id(value) in above or depth >= _DEPTH:
                return brackets.replace("|", "…")
            above.add(id(value))
            inside = ", ".join(_pairs(value, depth, above) if base is dict else _items(value, base, depth, above))
            above.discard(id(value))
            return brackets.replace("|", inside)
    if kind is FunctionType:
        return f"<function {value.__qualname__}>"  # type: ignore[attr-defined]
    if kind is ModuleType:
        return f"<module {dict.get(value.__dict__, '__name__', '?')!s}>"
    if kind is type:
        return f"<class {qualified(value)}>"  # type: ignore[arg-type]
    if (home := module_of(kind)) in _PLAIN_MODULES and getattr(sys.modules.get(home), kind.__name__, None) is kind:
        return f"{qualified(kind)}({scrub_value(value, limit=TEXT_CHARS)})"
    return f"<{qualified(kind)} object>"


_CONTAINERS: Final[tuple[tuple[type, str], ...]] = (
    (dict, "{|}"),
    (list, "[|]"),
    (tuple, "(|)"),
    (set, "{|}"),
    (frozenset, "{|}"),
    (deque, "deque([|])"),
)
# Whose objects `scrub_value` knows to be safe to ask, or names by their class.
_PLAIN_MODULES: Final = ("datetime", "decimal", "fractions", "uuid", "pathlib")


def _pairs(value: Any, depth: int, above: set[int]) -> Iterator[str]:
    for number, (key, one) in enumerate(islice(dict.items(value), _BREADTH + 1)):
        if number == _BREADTH:
            yield "…"
            return
        name = _name(key)
        shown = MASK if name is not None and is_secret_key(name) else _shown(one, depth + 1, above)
        yield f"{_shown(key, depth + 1, above)}: {shown}"


def _items(value: Any, base: Any, depth: int, above: set[int]) -> Iterator[str]:
    """The members; not the one that stands behind a secret's name, as in a header or on a command line."""
    is_pair = base in (list, tuple) and base.__len__(value) == 2
    before: str | None = None
    for number, one in enumerate(islice(base.__iter__(value), _BREADTH + 1)):
        if number == _BREADTH:
            yield "…"
            return
        is_secret = before is not None and (is_pair or before.startswith("-")) and is_secret_key(before)
        yield MASK if is_secret else _shown(one, depth + 1, above)
        before = _name(one)


def _name(key: object) -> str | None:
    if issubclass(type(key), str):
        return str.__str__(key)
    return key[:_NAME_CHARS].decode("utf-8", "replace") if type(key) is bytes else None
