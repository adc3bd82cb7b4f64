"""What waits for a module to be imported."""

from __future__ import annotations

import importlib
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.waiting import eventually
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


def test_an_archive_has_one_loader_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a package imports of itself is not the package."""
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("package_of_a_test/__init__.py", "from . import inside\nis_whole = True\n")
        archive.writestr("package_of_a_test/inside.py", "")
    monkeypatch.syspath_prepend(tmp_path / "archive.zip")
    seen: list[tuple[str, bool]] = []
    imports.after_import("package_of_a_test", lambda module: seen.append((module.__name__, module.is_whole)))

    try:
        importlib.import_module("package_of_a_test")
    finally:
        for name in ("package_of_a_test", "package_of_a_test.inside"):
            sys.modules.pop(name, None)
        imports.forget()

    assert seen == [("package_of_a_test", True)]


def test_it_waits_for_a_thread_that_imports_just_now(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(
        "import threading\nbegun, go_on = threading.Event(), threading.Event()\n"
        "begun.set()\ngo_on.wait(10)\nis_whole = True\n"
    )
    seen: list[bool] = []
    importing = threading.Thread(target=importlib.import_module, args=(module,))
    importing.start()
    eventually(lambda: hasattr(sys.modules.get(module), "go_on"))
    asking = threading.Thread(target=imports.after_import, args=(module, lambda found: seen.append(found.is_whole)))

    asking.start()
    sys.modules[module].go_on.set()
    for thread in (importing, asking):
        thread.join(10)

    assert seen == [True]


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
