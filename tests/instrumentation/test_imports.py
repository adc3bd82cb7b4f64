"""What waits for a module to be imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tocsin.contained import failures
from tocsin.instrumentation import imports


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that is not imported yet."""
    name = "module_of_a_test"
    (tmp_path / f"{name}.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)
    imports.forget()


def test_it_runs_right_after_the_import(module: str) -> None:
    seen: list[ModuleType] = []
    imports.after_import(module, seen.append)
    assert seen == []

    found = importlib.import_module(module)

    assert seen == [found]
    assert found.x == 1


def test_it_runs_at_once_for_what_is_imported(module: str) -> None:
    found = importlib.import_module(module)
    seen: list[ModuleType] = []

    imports.after_import(module, seen.append)

    assert seen == [found]


def test_the_same_function_waits_once(module: str) -> None:
    """However often tocsin is started: a lambda is another object each time."""
    seen: list[str] = []

    def install(word: str) -> None:
        imports.after_import(module, lambda module: seen.append(word))

    for word in ("a", "b", "a", "b"):
        install(word)
    importlib.import_module(module)

    assert seen == ["a", "b"]


def test_all_who_wait_are_called_and_a_failing_one_hurts_nobody(module: str) -> None:
    seen: list[str] = []

    def failing(module: ModuleType) -> None:
        raise RuntimeError("no")

    imports.after_import(module, failing)
    imports.after_import(module, lambda module: seen.append(module.__name__))

    importlib.import_module(module)

    assert seen == [module]
    assert failures.pop(f"patching {module}") == 1


def test_a_module_that_fails_or_is_missing_fails_as_ever(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("1 / 0\n")
    imports.after_import(module, lambda module: None)
    imports.after_import("no_such_module_of_ours", lambda module: None)

    with pytest.raises(ZeroDivisionError):
        importlib.import_module(module)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_of_ours")


def test_nothing_stays_when_it_is_forgotten(module: str) -> None:
    before = list(sys.meta_path)
    seen: list[ModuleType] = []
    imports.after_import(module, seen.append)

    imports.forget()
    importlib.import_module(module)

    assert seen == []
    assert sys.meta_path == before
