"""Run something right after a module is imported, whenever that may be."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tocsin.contained import contained

_waiting: dict[str, list[Callable[[ModuleType], None]]] = {}


def after_import(name: str, then: Callable[[ModuleType], None]) -> None:
    """
    Call `then` with the module: now where it is imported already, else right after its import.

    The same function waits once, however often it is given, so that starting anew leaves nothing behind.
    """
    if sys.modules.get(name) is not None:
        with contained(f"patching {name}"):
            then(importlib.import_module(name))  # waits for another thread that is importing it just now
        return
    waiting = _waiting.setdefault(name, [])
    if _identity(then) not in map(_identity, waiting):
        waiting.append(then)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _identity(then: Callable[[ModuleType], None]) -> object:
    """A function that is written within another is made anew at each call, and is the same by what it is made of."""
    code = getattr(then, "__code__", None)
    if code is None:
        return then
    cells = getattr(then, "__closure__", None) or ()
    return code, [id(cell.cell_contents) for cell in cells], getattr(then, "__defaults__", None)


def forget() -> None:
    """Drop what still waits for an import."""
    _waiting.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


class _Finder:
    """Lets the other finders find, and wraps the loader of the modules that are waited for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    _wrap(spec.loader)
                return spec
        return None


def _wrap(loader: Any) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        name = module.__name__  # of many, where it is the loader of an archive
        execute(module)
        for then in _waiting.pop(name, []):
            with contained(f"patching {name}"):
                then(module)

    loader.exec_module = exec_module
