"""
A failed job's function, found again by its import path, and its arguments as they shall be.

A row may have been written by whoever may send errors: nothing is imported whose source does not say that the
function is decorated, no script beside the folder is loaded, and only what `tocsin.protect` has wrapped is called.
"""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tocsin.exporter import arguments
from tocsin.failures import BadInput, TocsinError
from tocsin.instrumentation import protect
from tocsin.text import clean, one_line

Shape = dict[str, Any]

_PATH = re.compile(r"(args|kwargs)((?:\.[^.=]+)*)")
_FUNCTION = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_MAIN: Final = "__main__"
_SCRIPT: Final = "__mp_main__"
"""What a script is called that is loaded without being run, as `multiprocessing` does it."""


class CannotRun(TocsinError):
    """The job cannot be run here and now; the text says why, and what would help."""


# The arguments


def given_of(words: Sequence[str]) -> dict[str, Any]:
    """
    What the user gives instead of what a row has: ``kwargs.token=…``, the value as JSON, or else as text.

    Raises:
        BadInput: this names no argument.
    """
    found: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not _PATH.fullmatch(path):
            raise BadInput("--set", "give an argument and its value: args.0=7, kwargs.source=site")
        try:
            found[path] = json.loads(text)
        except (ValueError, RecursionError):
            found[path] = text
    return found


def arguments_of(job: Shape, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """
    The arguments to call with.

    Raises:
        CannotRun: some are not what they were, since secrets are not kept, and long or odd values are cut; they
            are named.
        BadInput: what is given does not fit.
    """
    changed = [str(path) for path in job["changed"]] if isinstance(job["changed"], list) else [arguments.ALL]
    if len(changed) >= arguments.MOST_PLACES:
        changed = [arguments.ALL]  # there may be more than are named
    if missing := [path for path in changed if not is_covered(path, given)]:
        named = ", ".join(_line(path) for path in missing)
        hints = " ".join(f"--set {path}=…" for path in missing if _PATH.fullmatch(path))
        raise CannotRun(
            f"job {job['number']} cannot be run as it is, since secrets are not kept, and long or odd values not whole:"
            f" {named}; give {hints or '--set args=[…] --set kwargs={…}'}, or do it by hand and say"
            f" `tocsin jobs done {job['number']}`"
        )
    whole = copy.deepcopy(job["arguments"]) if isinstance(job["arguments"], dict) else {}
    for path, value in given.items():
        _put(whole, path, value)
    args, kwargs = whole.get("args"), whole.get("kwargs")
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise CannotRun(f"job {job['number']} has no arguments that could be called with: this row is no service's")
    return args, kwargs


def is_covered(path: str, given: Iterable[str]) -> bool:
    """Whether one of some paths is that of an argument, or of what it is in."""
    if path == arguments.ALL:
        return {"args", "kwargs"} <= {*given}
    return any(path == one or path.startswith(f"{one}.") for one in given)


def _put(whole: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split(".")
    inside: Any = whole
    try:
        for part in way:
            inside = inside[int(part)] if isinstance(inside, list) else inside[part]
        if isinstance(inside, list):
            inside[int(last) : int(last) + 1] = [value]
        else:
            inside[last] = value
    except (KeyError, IndexError, ValueError, TypeError):
        raise BadInput("--set", f"there is no {_line(path)} in the arguments of this job") from None


# The function


def find(job: Shape, folder: Path) -> Callable[..., Any]:
    """
    The function, ready to be called; its module is imported from `folder`, or from where Python finds it.

    Raises:
        CannotRun: it is not there, or it is none that `tocsin.protect` has wrapped.
    """
    match = _FUNCTION.fullmatch(str(job["function"]))
    if match is None:
        raise CannotRun(
            f"{_line(job['function'])} cannot be found by its name: it was made inside another function; "
            f"do it by hand and say `tocsin jobs done {job['number']}`"
        )
    module_name, name = match.groups()
    sys.path.insert(0, str(folder))
    try:
        if module_name == _MAIN:
            module = _script(job, folder, name)
        else:
            source = _source_of(module_name)
            if source is None:
                raise CannotRun(f"there is no module {module_name} here: {_there(job, folder)}")
            _require_mark(source, name, is_program=module_name.endswith(f".{_MAIN}"))
            module = importlib.import_module(module_name)
        function = _inside(module, name)
    except (CannotRun, KeyboardInterrupt):
        raise
    except BaseException as problem:  # whatever a module does when it is imported
        said = one_line(clean(f"{type(problem).__name__}: {problem}", 300), 300)
        raise CannotRun(f"{module_name} cannot be imported here ({said}): {_there(job, folder)}") from problem
    if not callable(function) or not protect.is_protected(function):
        raise CannotRun(f"{_line(job['function'])} is not protected by tocsin, so that no job can be of it")
    found: Callable[..., Any] = function
    return found


def _there(job: Shape, folder: Path) -> str:
    """Where it would work."""
    there = job["folder"]
    if there and Path(there) != folder:
        return f"run it in {_line(there)}, with that service's Python"
    return f"run it with the Python and the environment of the service {_line(job['service'])}"


def _script(job: Shape, folder: Path, name: str) -> ModuleType:
    """The module of a program's own file, loaded so that its ``if __name__ == "__main__"`` part is not run."""
    file = job["file"]
    if not file or Path(file).suffix != ".py":
        raise CannotRun(f"{_line(job['function'])} is of a program whose file is not known, so that it cannot be run")
    path = _here(Path(file), job, folder).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise CannotRun(f"{_line(file)} is not in this folder: {_there(job, folder)}")
    if not path.is_file():
        raise CannotRun(f"{_line(file)} is not there any more")
    _require_mark(path, name, is_program=True)
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(_SCRIPT, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_SCRIPT] = module  # as `pickle` and `dataclasses` want it
    spec.loader.exec_module(module)
    return module


def _here(file: Path, job: Shape, folder: Path) -> Path:
    """The same file in this folder: since it failed, there may be another release, in a folder of its own."""
    if job["folder"] and file.is_relative_to(job["folder"]):
        here = folder / file.relative_to(job["folder"])
        if here.is_file():
            return here
    return file


def _source_of(module_name: str) -> Path | None:
    """The file of a module, found without importing anything; None where there is none."""
    search: list[str] | None = None
    origin = None
    parts = module_name.split(".")
    for depth, part in enumerate(parts, start=1):
        spec = _spec_of(".".join(parts[:depth]), search)
        if spec is None:
            return None
        origin = spec.origin
        if origin is None:  # a folder without an `__init__.py`: where it is hangs on its parent being imported
            search = [str(Path(folder, part)) for folder in search or sys.path if Path(folder, part).is_dir()]
        else:
            search = list(spec.submodule_search_locations or ())
    return Path(origin) if origin and origin.endswith(".py") else None


def _spec_of(module_name: str, search: list[str] | None) -> ModuleSpec | None:
    """What is known of a module as a file or a folder; by finders of editable installations too."""
    spec = PathFinder.find_spec(module_name.rpartition(".")[2], search)
    if spec is not None:
        return spec
    for finder in sys.meta_path:
        with suppress(Exception):  # some want the package to be imported
            spec = finder.find_spec(module_name, search)
            if spec is not None and str(spec.origin).endswith(".py"):
                return spec
    return None


def _require_mark(source: Path, name: str, *, is_program: bool) -> None:
    """
    Refuse a function whose source says that nothing has been put around it, before any of it is run.

    Importing is running: a row shall not choose among all modules of this machine.
    """
    last = name.rpartition(".")[2]
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as problem:
        raise CannotRun(f"{_line(source)} cannot be read: {type(problem).__name__}") from None
    except SyntaxError as problem:
        raise CannotRun(f"{_line(source)} has no Python that could be run: line {problem.lineno}") from None
    ways = list(_definitions(tree, name.split(".")))
    if not ways:
        raise CannotRun(f"there is no function {_line(name)} in {_line(source)} any more")
    if not any(ways) and not _is_bound_again(tree, last):
        raise CannotRun(f"{_line(name)} in {_line(source)} is not protected by tocsin, so that no job can be of it")
    if is_program and not _is_guarded(tree):
        raise CannotRun(
            f"{_line(source)} would run as a whole when it is loaded: put what it does under"
            ' `if __name__ == "__main__":`'
        )


def _is_guarded(tree: ast.Module) -> bool:
    """Whether a program does its work only where it is run, not where it is loaded."""
    return any(
        isinstance(node, ast.If)
        and any(isinstance(one, ast.Name) and one.id == "__name__" for one in ast.walk(node.test))
        for node in tree.body
    )


def _definitions(tree: ast.AST, parts: Sequence[str]) -> Iterator[bool]:
    """For each place where a function of this name is defined: whether it, or a class around it, is decorated."""
    for node in _own_nodes(tree):
        if node.name != parts[0]:
            continue
        is_marked = bool(node.decorator_list)
        if len(parts) == 1 and not isinstance(node, ast.ClassDef):
            yield is_marked
        elif len(parts) > 1 and isinstance(node, ast.ClassDef):
            inside = list(_definitions(node, parts[1:]))
            yield from (is_marked or one for one in inside)
            if not inside and node.bases:  # a class method of a class above it
                yield True


def _own_nodes(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """What is defined in a body, also below `if` and `try`, but not inside of other definitions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
        else:
            yield from _own_nodes(node)


def _is_bound_again(tree: ast.AST, name: str) -> bool:
    """Whether a name is set somewhere: ``push = tocsin.protect(push)``."""
    return any(
        isinstance(node.ctx, ast.Store) and name == (node.id if isinstance(node, ast.Name) else node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )


def _inside(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _line(value: object) -> str:
    return one_line(clean(str(value), 300), 300)
