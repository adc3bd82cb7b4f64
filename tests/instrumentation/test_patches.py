"""Ours before a function of somebody else's: in and out again, whoever comes after us."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tocsin.instrumentation.patches import Layer, Patch

Calls = list[str]


@pytest.fixture
def calls() -> Calls:
    return []


@pytest.fixture
def module(calls: Calls) -> Any:
    return SimpleNamespace(hook=lambda: calls.append("theirs"))


@pytest.fixture
def patch(module: Any, calls: Calls) -> Patch:
    def make(layer: Layer) -> Callable[[], None]:
        def ours() -> None:
            if layer.is_on:
                calls.append("ours")
            layer.before()

        return ours

    return Patch(module, "hook", make)


def test_ours_comes_first_and_goes_without_a_trace(patch: Patch, module: Any, calls: Calls) -> None:
    found = module.hook
    for _ in range(2):  # twice is harmless
        patch.install()
    module.hook()
    for _ in range(2):
        patch.uninstall()

    assert calls == ["ours", "theirs"]
    assert module.hook is found


def test_under_another_it_does_nothing_any_more(patch: Patch, module: Any, calls: Calls) -> None:
    """Also where the other one looks like ours, as `functools.wraps` makes it."""
    patch.install()
    ours = module.hook

    @functools.wraps(ours)
    def on_top() -> None:
        calls.append("on top")
        ours()

    module.hook = on_top
    patch.uninstall()

    module.hook()

    assert module.hook is on_top
    assert calls == ["on top", "theirs"]


def test_on_top_of_another_it_is_on_once(patch: Patch, module: Any, calls: Calls) -> None:
    """The one below stays off, and both are gone when the other one is."""
    found = module.hook
    patch.install()
    below = module.hook
    module.hook = lambda: below()  # noqa: PLW0108
    patch.uninstall()
    patch.install()

    module.hook()

    assert calls == ["ours", "theirs"]
    module.hook = below
    patch.uninstall()
    assert module.hook is found


def test_a_chain_does_not_grow_by_starts(patch: Patch, module: Any) -> None:
    patch.install()
    ours = module.hook
    depths: list[int] = []

    def on_top() -> None:
        depths.append(len(traceback.extract_stack()))
        ours()

    module.hook = on_top
    for _ in range(1000):
        patch.uninstall()
        patch.install()

    module.hook()

    assert depths[0] - len(traceback.extract_stack()) == 2  # one of ours, and the other one


def test_what_a_class_had_from_its_base_it_has_from_there_again(calls: Calls) -> None:
    class Base:
        def hook(self) -> None:
            calls.append("base")

    class Derived(Base):
        pass

    def make(layer: Layer) -> Callable[[Any], None]:
        return lambda self: layer.before(self)  # noqa: PLW0108  (a function of ours)

    patch = Patch(Derived, "hook", make)
    patch.install()
    Derived().hook()
    assert "hook" in vars(Derived)
    patch.uninstall()

    assert calls == ["base"]
    assert "hook" not in vars(Derived)
