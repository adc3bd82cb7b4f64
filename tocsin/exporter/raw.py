"""
The parts of a foreign exception and of its class, past whatever they do to attribute access.

A class may answer `__getattribute__`, `__class__`, `__dict__` or `__hash__` with an exception of its
own; these read what the interpreter keeps, and call nothing of the class.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

cause_of: Final[Callable[[BaseException], BaseException | None]] = vars(BaseException)["__cause__"].__get__
context_of: Final[Callable[[BaseException], BaseException | None]] = vars(BaseException)["__context__"].__get__
is_context_suppressed: Final[Callable[[BaseException], bool]] = vars(BaseException)["__suppress_context__"].__get__
traceback_of: Final[Callable[[BaseException], TracebackType | None]] = vars(BaseException)["__traceback__"].__get__
attributes_of: Final[Callable[[BaseException], dict[str, Any]]] = vars(BaseException)["__dict__"].__get__
members_of: Final[Callable[[BaseException], tuple[BaseException, ...]]] = vars(BaseExceptionGroup)["exceptions"].__get__
"""Of a group only."""
exit_code_of: Final[Callable[[BaseException], object]] = vars(SystemExit)["code"].__get__
"""Of a `SystemExit` only."""

module_of: Final[Callable[[type], object]] = vars(type)["__module__"].__get__
qualname_of: Final[Callable[[type], str]] = vars(type)["__qualname__"].__get__
mro_of: Final[Callable[[type], tuple[type, ...]]] = vars(type)["__mro__"].__get__
