"""
The parts of a foreign exception and of its class, past whatever they do to attribute access.

A class may answer `__getattribute__`, `__class__`, `__dict__` or `__hash__` with an exception of its
own; these read what the interpreter keeps, and call nothing of the class.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

cause_of: Final[Callable[[BaseException], BaseException | None]] = vars(BaseException)["__cause__"].__get__
context_of: Final[Callable[[BaseException], BaseException | None]] = vars(BaseException)["__context__"].__get__
is_context_suppressed: Final[Callable[[BaseException], bool]] = vars(BaseException)["__suppress_context__"].__get__
traceback_of: Final[Callable[[BaseException], TracebackType | None]] = vars(BaseException)["__traceback__"].__get__
attributes_of: Final[Callable[[BaseException], dict[str, Any]]] = vars(BaseException)["__dict__"].__get__
"""It may be of a class of its own: read it by `get`, and write to it by ``dict.__setitem__``."""
get: Final = dict.get
members_of: Final[Callable[[BaseException], tuple[BaseException, ...]]] = vars(BaseExceptionGroup)["exceptions"].__get__
"""Of a group only."""
exit_code_of: Final[Callable[[BaseException], object]] = vars(SystemExit)["code"].__get__
"""Of a `SystemExit` only."""

_module_of: Final[Callable[[type], object]] = vars(type)["__module__"].__get__
_qualname_of: Final[Callable[[type], str]] = vars(type)["__qualname__"].__get__
mro_of: Final[Callable[[type], tuple[type, ...]]] = vars(type)["__mro__"].__get__

MAX_LINKS: Final = 50


def module_of(kind: type) -> str | None:
    """Where a class says that it was made; None where it says no text."""
    try:
        found = _module_of(kind)
    except AttributeError:  # it was deleted
        return None
    return str.__str__(found) if issubclass(type(found), str) else None


def qualname_of(kind: type) -> str:
    """A class's name with those that it is in."""
    return str.__str__(_qualname_of(kind))


def is_group(exc: BaseException) -> bool:
    """Whether it holds others."""
    return issubclass(type(exc), BaseExceptionGroup)  # isinstance would ask the object as well


def before(exc: BaseException) -> BaseException | None:
    """What an exception came from, as a traceback shows it: its cause, else its context."""
    cause = cause_of(exc)
    return context_of(exc) if cause is None and not is_context_suppressed(exc) else cause


def origins_of(exc: BaseException, *, with_members: bool = False) -> list[BaseException]:
    """
    What led to an exception, nearest first, each once; cycles and long chains are cut.

    Args:
        with_members: also those that are in its group, and what led to them.
    """
    found: list[BaseException] = []
    seen = {id(exc)}
    waiting = deque([exc])
    while waiting:
        one = waiting.popleft()
        members = members_of(one)[:MAX_LINKS] if with_members and is_group(one) else ()
        for link in (before(one), *members):
            if link is not None and id(link) not in seen and len(found) < MAX_LINKS:
                seen.add(id(link))
                found.append(link)
                waiting.append(link)
    return found
