"""A call that failed for good, as a line for a person: enough to understand it, and mostly to make it again."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, MethodType
from typing import Any, Final

from tocsin import clock
from tocsin.exporter import arguments
from tocsin.exporter.raw import module_of, qualname_of
from tocsin.ids import uuid7
from tocsin.instrumentation import stacks
from tocsin.text import shorten

MOST_ATTEMPTS: Final = 20
"""How many of a job's last tries are told of; `tocsin.exporter.facts` takes no more, and is dear to load."""

_MESSAGE: Final = 2_000


def line(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    failure: BaseException,
    attempts: Sequence[Mapping[str, Any]],
    tries: int,
    category: str | None,
    error_id: str | None,
) -> dict[str, Any]:
    """
    A job as a line of the spool; see `tocsin.exporter.facts`.

    Args:
        function: as the program calls it.
        attempts: the last of its tries.
    """
    path = path_of(function)
    names = _positional(function)
    if (bound := _class_called(function, args)) is not None:  # its path finds the class by itself
        path, args, names = bound, args[1:], names[1:]
    encoded, changed = arguments.encode(args, kwargs, names)
    now_ns = clock.now_ns()
    return {
        "kind": "job",
        "time_unix_nano": now_ns,
        "id": uuid7(now_ns),
        "function": path,
        "file": _file_of(function),
        "folder": _folder(),
        "arguments": encoded,
        "changed": changed,
        "attempts": list(attempts),
        "tries": tries,
        "category": category if isinstance(category, str) else None,
        "exception_type": stacks.names_of(type(failure))[0],
        "message": shorten(stacks.safe_message(failure), _MESSAGE),
        "error_id": error_id,
    }


def path_of(function: Callable[..., Any]) -> str:
    """
    ``shop.leads:Pusher.push``: where a function can be found again, if it can.

    What is defined in a function has ``<locals>`` in it, and a script ``__main__``: they tell where to look.
    """
    module = getattr(function, "__module__", None)
    if module == "__main__":  # `python -m shop.worker` has a name that can be imported
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = getattr(spec, "name", None) or module
    return f"{module}:{name_of(function)}"


def name_of(function: Callable[..., Any]) -> str:
    """A function's name within its module."""
    found = getattr(function, "__qualname__", None)
    return found if isinstance(found, str) else f"<{type(function).__qualname__} object>"


def _class_called(function: Callable[..., Any], args: tuple[Any, ...]) -> str | None:
    """The path of a class method, of the class that it was called of."""
    if not args or not issubclass(type(args[0]), type):  # isinstance would ask the object too
        return None
    kind: Any = args[0]
    name = name_of(function).rpartition(".")[2]
    path = f"{module_of(kind)}:{qualname_of(kind)}.{name}"
    found = getattr(kind, name, None)
    is_bound = type(found) is MethodType and found.__self__ is kind and found.__func__ is function
    return path if is_bound else None


def _positional(function: Callable[..., Any]) -> Sequence[str]:
    """The parameters that can be given without their names."""
    code = _code_of(function)
    if code is None:
        return ()
    names = code.co_varnames
    count = code.co_argcount
    if code.co_flags & inspect.CO_VARARGS:
        return (*names[:count], names[count + code.co_kwonlyargcount])
    return names[:count]


def _code_of(function: Callable[..., Any]) -> CodeType | None:
    found = getattr(inspect.unwrap(function), "__code__", None)
    return found if isinstance(found, CodeType) else None


def _file_of(function: Callable[..., Any]) -> str | None:
    code = _code_of(function)
    return str(Path(code.co_filename).absolute()) if code is not None else None


def _folder() -> str | None:
    with suppress(OSError):  # it may be gone
        return str(Path.cwd())
    return None
