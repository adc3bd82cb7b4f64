"""
What grew in this process: which types have more objects than before, and which containers hold the most.

Asked for once or twice in the life of a process that is about to have no memory left, so it takes little itself and
keeps nothing: names of types, numbers, and the name of the module's variable that holds a container, never what is in
one. Nothing of the program's own is called: an object's class is the one that the interpreter knows, and only
containers that come with Python are asked for their length.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from tocsin.exporter.frames import in_app
from tocsin.exporter.raw import module_of, qualname_of
from tocsin.exporter.scrub import scrub_text
from tocsin.text import clean, one_line

MOST_PAUSE_S: Final = 0.05
"""How long the one call may take that nobody else runs meanwhile; where it would be longer, it is left out."""

CHUNK: Final = 10_000
"""Objects that are looked at before others have their turn: about 2 ms."""

_BLOCK_S: Final = 10e-9  # of that call for each block of memory, where nothing was measured yet
_COLDER: Final = 1.5  # a heap that has grown is less in the cache
_LONGEST_S: Final = 3.0
_MEASURED_OBJECTS: Final = 100_000  # fewer say too little about how long it takes
_FEWEST_ITEMS: Final = 256
_MOST_CONTAINERS: Final = 200
_MOST_VISITS: Final = 20_000
_VISITS_AT_ONCE: Final = 1_000
_DEEPEST: Final = 5
_SMALL: Final = 200  # items of a container that is looked into
_SAMPLE: Final = 16  # items from its start, and as many from its end
_NAME_LIMIT: Final = 120
_TOLD: Final = 5
_STANDS_OUT: Final = 0.05  # of what grew most
_FEWEST_OF_ALL: Final = 10_000  # where it is not known what was there before
_MUCH_BYTES: Final = 2**20
_MANY_ITEMS: Final = 1_000

# Types are compared by their ids: a metaclass may have ideas of its own of what is equal.
_HOLDERS: Final = (dict, list, set, deque, tuple, frozenset, bytearray)
_SIZED: Final = frozenset(map(id, (*_HOLDERS, str, bytes, int, float, complex, bool, type(None))))
"""Types whose objects say how large they are by code of the interpreter alone."""
_LEADING: Final = frozenset(map(id, (FunctionType, MethodType, type(lru_cache(lambda: None)))))
_ENTRY_BYTES: Final = {dict: 100, set: 60, frozenset: 60, bytearray: 1}
_POINTER_BYTES: Final = 8
_basic_size_of: Final = vars(type)["__basicsize__"].__get__


@dataclass(frozen=True, slots=True)
class Container:
    """One that holds much; `name` is that of the variable of a module that it is, or ``in`` the one it is in."""

    kind: str
    items: int
    of: str  #          the type of most of its items
    about_bytes: int
    name: str = ""


@dataclass(slots=True)
class Survey:
    """What there was in memory at a moment, in names and numbers."""

    types: Counter[str] = field(default_factory=Counter)
    containers: list[Container] = field(default_factory=list)  # the largest first
    objects: int = 0  #      that the collector keeps track of; 0: they were not looked at
    blocks: int = 0
    pause_s: float = 0.0  #  how long nobody else could run
    is_whole: bool = False  # no object was left out


def survey(before: Survey | None = None) -> Survey:
    """
    Look at all objects, in small pieces; takes up to some seconds, in which the program goes on.

    Args:
        before: an earlier one, by which it is known how long it will take.
    """
    found = Survey(blocks=sys.getallocatedblocks())
    largest: list[Any] = []
    if _is_quick(found.blocks, before):
        _count(found, largest)
    named = dict(_named(largest))
    found.containers = sorted(
        (_described(one, named.get(id(one), "")) for one in largest), key=lambda one: one.about_bytes, reverse=True
    )[:_MOST_CONTAINERS]
    return found


def _is_quick(blocks: int, before: Survey | None) -> bool:
    """Whether asking for all objects takes no longer than anybody may have to wait for it."""
    per_block_s = _BLOCK_S
    if before is not None and before.objects > _MEASURED_OBJECTS and before.blocks:
        per_block_s = before.pause_s / before.blocks * _COLDER
    return blocks * per_block_s <= MOST_PAUSE_S


def _count(found: Survey, largest: list[Any]) -> None:
    """Count the types of all objects, and collect the containers that hold the most."""
    began, began_cpu_s = time.monotonic(), time.thread_time()
    objects = gc.get_objects()
    found.pause_s = time.thread_time() - began_cpu_s  # another program's turn is none of its doing
    counts: Counter[int] = Counter()
    kinds: dict[int, type] = {}
    holders: dict[int, Any] = {}  # how the objects of a type are asked for their length
    total = len(objects)
    until = began + _LONGEST_S
    while objects and time.monotonic() < until:
        moment = time.monotonic()
        chunk = objects[-CHUNK:]
        del objects[-CHUNK:]  # what is not looked at any more is let go of at once
        types = list(map(type, chunk))
        ids = list(map(id, types))
        counts.update(ids)
        known = len(kinds)
        kinds.update(zip(ids, types, strict=True))
        for number in islice(kinds, known, None):
            if (base := _holder_of(kinds[number])) is not None:
                holders[number] = base.__len__
        largest += [
            one
            for one, number in zip(chunk, ids, strict=True)
            if number in holders and holders[number](one) >= _FEWEST_ITEMS
        ]
        _keep_largest(largest)
        del chunk
        time.sleep(time.monotonic() - moment)
    found.is_whole = not objects
    while objects:
        del objects[-CHUNK:]
        time.sleep(0)
    found.objects = total
    for number, count in counts.items():
        found.types[_name_of(kinds[number])] += count


def _keep_largest(found: list[Any]) -> None:
    if len(found) > 2 * _MOST_CONTAINERS:
        found.sort(key=_length_of, reverse=True)
        del found[_MOST_CONTAINERS:]


def _holder_of(kind: type) -> Any:
    """The container of Python's own that a type is, or is made from; None for any other."""
    for base in _HOLDERS:
        if issubclass(kind, base):  # asks the container's class, not the other
            return base
    return None


def _length_of(one: Any) -> int:
    base = _holder_of(type(one))
    return int(base.__len__(one)) if base is not None else 0


def _named(largest: list[Any]) -> Iterator[tuple[int, str]]:
    """
    The containers that variables of modules lead to, by their ids, nearest first; those that are large join `largest`.

    The collector forgets about a dict of texts and numbers, so that it is only found this way.
    """
    seen: set[int] = {id(largest), *map(id, sys.modules.values())}
    known = set(map(id, largest))
    modules = [one for one in list(sys.modules.values()) if type(one) is ModuleType]
    ours = [one for one in modules if _is_own(one)]
    others = [one for one in modules if not _is_own(one)]
    waiting: deque[tuple[Any, str, int]] = deque()
    for one in ours:
        waiting += _variables(one, 0)
    for one in others:  # only what they hold themselves
        waiting += _variables(one, _DEEPEST)
    visits = 0
    while waiting and visits < _MOST_VISITS:
        value, name, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        visits += 1
        if visits % _VISITS_AT_ONCE == 0:
            time.sleep(0.001)
        kind = type(value)
        if _length_of(value) > _SMALL:
            if id(value) not in known:
                largest.append(value)
            yield id(value), name
        elif depth < _DEEPEST and _leads_on(value, kind):
            with suppress(RuntimeError):
                inside = name if depth else f"in {name}"
                waiting += [(one, inside, depth + 1) for one in islice(gc.get_referents(value), _SMALL)]


def _leads_on(value: Any, kind: type) -> bool:
    """Whether something may hang on it that is the program's own: its objects, classes, closures and caches."""
    if id(kind) in _LEADING or issubclass(kind, type) or _holder_of(kind) is not None:
        return True
    return gc.is_tracked(value) and kind is not ModuleType


def _variables(module: ModuleType, depth: int) -> list[tuple[Any, str, int]]:
    held = vars(module)
    name = _module_name(module)
    return [
        (value, f"{name}.{key}", depth)
        for key, value in list(held.items())
        if type(key) is str
        and not key.startswith("__")
        and (gc.is_tracked(value) or _holder_of(type(value)) is not None)
    ]


def _module_name(module: ModuleType) -> str:
    held = vars(module)
    name, file = held.get("__name__"), held.get("__file__")
    if name == "__main__" and type(file) is str:
        return file.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or name
    return name if type(name) is str else "?"


def _is_own(module: ModuleType) -> bool:
    held = vars(module)
    if held.get("__name__") == "__main__":
        return True
    file, name = held.get("__file__"), held.get("__name__")
    return type(file) is str and type(name) is str and name.partition(".")[0] != "tocsin" and in_app(file)


def _described(one: Any, name: str) -> Container:
    base = _holder_of(type(one))
    items = _length_of(one)
    some = _some_of(one, base)
    kinds = list(map(type, some))
    most = Counter(map(id, kinds)).most_common(1)
    size = sum(map(_size_of, some)) / len(some) if some else 0
    return Container(
        _name_of(type(one)),
        items,
        next((_name_of(kind) for kind in kinds if id(kind) == most[0][0]), ""),
        int(items * (_ENTRY_BYTES.get(base, _POINTER_BYTES) + size)),
        _shown(name),
    )


def _some_of(one: Any, base: type) -> list[Any]:
    """Some of its items, from both ends; nothing of a class of the program's runs."""
    with suppress(RuntimeError, IndexError):  # somebody changes it meanwhile
        if base is list or base is tuple:
            get = base.__getitem__
            return [*get(one, slice(_SAMPLE)), *get(one, slice(-_SAMPLE, None))]
        if base is dict:
            values = dict.values(one)
            return [*islice(values, _SAMPLE), *islice(reversed(values), _SAMPLE)]
        if base is not bytearray:
            return list(islice(base.__iter__(one), _SAMPLE))  # type: ignore[attr-defined]
    return []


def _size_of(item: Any) -> int:
    kind = type(item)
    return sys.getsizeof(item) if id(kind) in _SIZED else int(_basic_size_of(kind)) + 16


def _name_of(kind: type) -> str:
    module = module_of(kind)
    name = qualname_of(kind)
    if module == "__main__" and (main := sys.modules.get("__main__")) is not None and type(main) is ModuleType:
        module = _module_name(main)
    return _shown(name if module in (None, "builtins") else f"{module}.{name}")


def _shown(name: str) -> str:
    """A program makes classes and names out of anything."""
    return one_line(clean(scrub_text(name[: 4 * _NAME_LIMIT]), _NAME_LIMIT), _NAME_LIMIT)


# Said to people.


@dataclass(frozen=True, slots=True)
class Grown:
    """A type that has more objects than before."""

    name: str
    more: int
    now: int


def grown(before: Survey | None, now: Survey) -> list[Grown]:
    """
    The types with the most new objects; all of them are new where there was no look before.

    What is the program's own comes before the lists and dicts that its objects are made of.
    """
    then: Mapping[str, int] = before.types if before is not None else {}
    found = [Grown(name, count - then.get(name, 0), count) for name, count in now.types.items()]
    least = max([one.more * _STANDS_OUT for one in found] + [_FEWEST_ITEMS if then else _FEWEST_OF_ALL])
    found = [one for one in found if one.more >= least]
    return sorted(found, key=lambda one: one.more * (1.0 if "." in one.name else 0.2), reverse=True)[:_TOLD]


def largest(before: Survey | None, now: Survey) -> list[tuple[Container, int | None]]:
    """The containers that hold the most, each with how many items more than before, None where that is not known."""
    growing = {one.name for one in grown(before, now)} or {one.of for one in now.containers}
    growing = {name for name in growing if "." in name}
    # Of several in one variable the largest counts, which comes first.
    then = {one.name: one.items for one in reversed(before.containers) if one.name} if before is not None else {}
    found = [
        (one, one.items - then[one.name] if one.name in then else None)
        for one in now.containers
        if one.about_bytes >= _MUCH_BYTES or (one.items >= _MANY_ITEMS and one.of in growing)
    ]
    found.sort(key=_weight, reverse=True)
    return found[:_TOLD]


def _weight(pair: tuple[Container, int | None]) -> float:
    """What has not grown since is not what is looked for."""
    container, more = pair
    return container.about_bytes * (0.1 if more is not None and more <= 0 else 1.0)


def said(before: Survey | None, now: Survey) -> str:
    """In a line: ``Order by 118,204; the list shop.cache.SEEN has 118,204 items (Order)``; empty where nothing is."""
    parts = []
    types = grown(before, now)
    types = [one for one in types if "." in one.name] or types  # what its objects are made of says less
    words = "by" if before is not None and before.objects else "to"
    if types:
        parts.append(", ".join(f"{one.name} {words} {one.more if words == 'by' else one.now:,}" for one in types[:3]))
    containers = [one for one, _ in largest(before, now)]
    # The largest one, and the one that holds what grew.
    holding = [one for one in containers if types and one.of == types[0].name]
    for container in dict.fromkeys([*containers[:1], *(holding or containers[1:])[:1]]):
        of = f" ({container.of})" if container.of else ""
        what = "bytes" if container.kind == "bytearray" else "items"
        parts.append(f"the {f'{container.kind} {container.name}'.strip()} has {container.items:,} {what}{of}")
    return "; ".join(parts)


def as_facts(before: Survey | None, now: Survey) -> dict[str, Any]:
    """The same in full, as JSON takes it."""
    if now.objects:
        looked_at = f"{'all' if now.is_whole else 'a part of'} {now.objects:,} objects, in {now.pause_s * 1000:.0f} ms"
    else:
        looked_at = "only what variables of modules hold: there are too many objects to look at them all"
    return {
        "grew": [{"type": one.name, "more": one.more, "now": one.now} for one in grown(before, now)],
        "largest": [
            {"type": one.kind, "name": one.name, "items": one.items, "of": one.of, "about_bytes": one.about_bytes}
            | ({"more": more} if more is not None else {})
            for one, more in largest(before, now)
        ],
        "looked_at": looked_at,
    }


def without_detail(found: Survey) -> Survey:
    """So much of it as an earlier look is kept for."""
    types = Counter(dict(_most(found.types.items(), 2000)))
    named = [one for one in found.containers if one.name]
    return Survey(types, named, found.objects, found.blocks, found.pause_s, found.is_whole)


def _most(counts: Iterable[tuple[str, int]], limit: int) -> list[tuple[str, int]]:
    return sorted(counts, key=lambda pair: pair[1], reverse=True)[:limit]
