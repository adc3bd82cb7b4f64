"""What grew: found by name and number, without touching what is the program's own."""

from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tocsin.instrumentation import growth
from tocsin.instrumentation.growth import Survey

MANY = 20_000


class Order:
    """What a service forgets to let go of."""

    def __init__(self, number: int) -> None:
        self.number = number


class Loud(type):
    """A metaclass that answers nothing."""

    def __hash__(cls) -> int:
        raise AssertionError("hashed")

    def __eq__(cls, other: object) -> bool:
        raise AssertionError("compared")

    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError(f"asked for {name}")


class Odd(metaclass=Loud):
    """One of its objects may be anywhere."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")


class Orders(list[Any]):
    """A list with ideas of its own."""

    def __len__(self) -> int:
        raise AssertionError("asked for its length")

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("iterated")

    def __getitem__(self, at: Any) -> Any:
        raise AssertionError("asked for an item")


@pytest.fixture(autouse=True)
def nothing_else() -> Iterator[None]:
    """What the tests themselves have loaded is not looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the team's, for as long as a test lasts."""
    module = ModuleType("shop_of_a_test")
    module.__file__ = "/srv/shop/shop_of_a_test.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # The tests before this one have left much to look at, under names of their own.
    for name in [name for name in sys.modules if name.startswith("tests.")]:
        if name != __name__:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(growth, "_MOST_VISITS", 10**6)
    monkeypatch.setattr(growth, "_LONGEST_S", 60.0)
    return module


def found_in(before: Survey | None, now: Survey, name: str) -> growth.Container:
    (found,) = [one for one, _ in growth.largest(before, now) if one.name.endswith(name)]
    return found


def test_what_always_was_there_is_not_named() -> None:
    """Tables of the standard library are among the largest in a small process; they say nothing."""
    code = (
        "from tocsin.instrumentation import growth; before = growth.without_detail(growth.survey());"
        "now = growth.survey(before); print(len(now.containers), now.objects > 1000, [growth.said(before, now)])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    count, *said = done.stdout.split()
    assert int(count) > 3
    assert said == ["True", "['']"]


def test_a_type_that_grows_is_named_with_the_list_that_holds_it(shop: Any) -> None:
    shop.KEPT = []
    before = growth.without_detail(growth.survey())
    shop.KEPT += [Order(number) for number in range(MANY)]

    now = growth.survey(before)

    name = f"{__name__}.Order"
    (one,) = [one for one in growth.grown(before, now) if one.name == name]
    assert one.more == one.now == MANY
    assert growth.grown(before, now)[0].name == name
    kept = found_in(before, now, "shop_of_a_test.KEPT")
    assert (kept.kind, kept.items, kept.of) == ("list", MANY, name)
    said = growth.said(before, now)
    assert said.startswith(f"{name} by {MANY:,}")
    assert f"the list shop_of_a_test.KEPT has {MANY:,} items ({name})" in said


def test_what_the_collector_forgets_about_is_found_by_the_modules(shop: Any) -> None:
    """A dict of texts, a set of numbers, a list of bytes; in an object, in a class, behind a cache."""
    shop.SEEN = {str(number): str(number) for number in range(MANY)}
    shop.state = SimpleNamespace(numbers=set(range(MANY)))
    shop.Cache = type("Cache", (), {"blobs": deque(bytes(2) for _ in range(MANY))})
    shop.buffer = bytearray(50 * 2**20)
    shop.double = functools.lru_cache(maxsize=None)(str)
    for number in range(MANY):
        shop.double(number)

    containers = growth.survey().containers

    found = {one.name: (one.kind, one.of) for one in containers if "shop_of_a_test" in one.name}
    assert found == {
        "shop_of_a_test.SEEN": ("dict", "str"),
        "in shop_of_a_test.state": ("set", "int"),
        "in shop_of_a_test.Cache": ("collections.deque", "bytes"),
        "shop_of_a_test.buffer": ("bytearray", ""),
        "in shop_of_a_test.double": ("dict", "str"),
    }
    assert max(containers, key=lambda one: one.about_bytes).name == "shop_of_a_test.buffer"


def test_nothing_of_the_programs_own_is_called(shop: Any) -> None:
    """Neither an object, nor its class, nor the class of that."""
    orders = Orders()
    for number in range(MANY):
        list.append(orders, number)
    shop.orders = orders
    shop.odd = [Odd() for _ in range(MANY)]

    now = growth.survey()

    (found,) = [one for one in now.containers if one.name == "shop_of_a_test.orders"]
    assert (found.kind, found.items, found.of) == (f"{__name__}.Orders", MANY, "int")
    assert found_in(None, now, ".odd").of == f"{__name__}.Odd"
    assert now.types[f"{__name__}.Odd"] == MANY


def test_no_content_is_told(shop: Any) -> None:
    """Names of types and variables, and numbers; what a name is made of may be a secret all the same."""
    secret = "hunter2hunter2"
    made = type(f"Row_password={secret}", (), {})
    shop.rows = {f"{secret}-{number}": made() for number in range(MANY)}

    now = growth.survey()

    told = json.dumps(growth.as_facts(None, now)) + growth.said(None, now)
    assert "shop_of_a_test.rows" in told
    assert secret not in told


def test_nothing_is_kept(shop: Any) -> None:
    """What was looked at goes when the program lets go of it."""
    shop.kept = [Order(number) for number in range(MANY)]
    last = weakref.ref(shop.kept[-1])

    found = growth.survey()
    del shop.kept

    assert last() is None
    assert found.types[f"{__name__}.Order"] == MANY


def test_a_look_costs_so_much_for_each_object_and_lets_others_run() -> None:
    """Ten times the objects take about ten times as long; in between others have their turn."""
    costs = []
    turns = []
    for count in (50_000, 500_000):
        objects: list[Any] = [[] for _ in range(count)]
        gc.collect()
        before = time.thread_time()
        with counting_turns() as turn:
            found = growth.survey()
        costs.append(time.thread_time() - before)
        turns.append(turn[0])
        assert found.objects >= count and found.is_whole
        assert found.types["list"] >= count
        assert found.pause_s < costs[-1] / 2
        del objects
    assert costs[1] / costs[0] < 25
    assert turns[1] >= 500_000 / growth.CHUNK / 4


class counting_turns:
    """How often another thread of this process had its turn meanwhile."""

    def __enter__(self) -> list[int]:
        self._count = [0]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self._count

    def _run(self) -> None:
        while not self._ended.wait(0.0005):
            self._count[0] += 1

    def __exit__(self, *args: object) -> None:
        self._ended.set()
        self._thread.join()


def test_where_a_look_would_hold_others_up_only_variables_are_looked_at(shop: Any) -> None:
    """By what an earlier look has cost for each block of memory."""
    shop.kept = [Order(number) for number in range(MANY)]
    dear = Survey(objects=1_000_000, blocks=sys.getallocatedblocks() // 2, pause_s=0.04)

    now = growth.survey(dear)

    assert (now.objects, now.pause_s) == (0, 0.0)
    assert found_in(dear, now, "shop_of_a_test.kept").items == MANY
    assert growth.as_facts(dear, now)["looked_at"].startswith("only what variables of modules hold")
    assert "the list shop_of_a_test.kept has 20,000 items" in growth.said(dear, now)
