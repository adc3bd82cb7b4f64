"""Exceptions that nobody should write, and some that people do: for each seed the same ones."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, MappingProxyType
from typing import Any, NoReturn

import tocsin

SECRET = "hunter2-correct-horse"
"""Stands in what is raised only where it can be told for a secret; nothing may show it."""

log = logging.Logger("hostile")
"""Of no tree of loggers: nobody else shall format what it gets."""
log.addHandler(logging.NullHandler())

_set: dict[str, Callable[[BaseException, Any], None]] = {
    name: vars(BaseException)[name].__set__ for name in ("args", "__cause__", "__context__", "__traceback__")
}


@dataclass(slots=True)
class Case:
    """One exception, ready to be raised by `raise_`."""

    exc: BaseException
    raise_: Callable[[BaseException], NoReturn]
    facts: Any
    is_slow: bool  #    it blocks or allocates while it is asked
    is_changed: bool  # it changes itself while it is asked
    what: list[str]


class Text(str):
    """A text that refuses to be handled as one."""

    __slots__ = ()

    def _refuse(self, *_: object) -> NoReturn:
        raise RuntimeError("no text")

    __getitem__ = __len__ = __iter__ = __contains__ = __eq__ = __hash__ = __add__ = __format__ = _refuse
    startswith = partition = split = encode = lower = replace = isascii = splitlines = strip = _refuse  # type: ignore[assignment]

    def __str__(self) -> str:
        return self


class Sulky:
    """An object that refuses everything."""

    __slots__ = ()

    def _refuse(self, *_: object) -> NoReturn:
        raise SystemExit("nothing")

    __repr__ = __str__ = __hash__ = __len__ = __iter__ = __eq__ = __bool__ = __getattr__ = __reduce_ex__ = _refuse


class Refusing(Mapping[str, Any]):
    """A mapping that raises when it is read."""

    def __init__(self, problem: BaseException) -> None:
        self.problem = problem

    def __getitem__(self, key: str) -> Any:
        raise self.problem

    def __iter__(self) -> Iterator[str]:
        return iter(("a", "b"))

    def __len__(self) -> int:
        return 2


class Endless(Mapping[str, Any]):
    """A mapping that has no end, and itself in it."""

    def __getitem__(self, key: str) -> Any:
        return self

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield f"key {number}"

    def __len__(self) -> int:
        return 2**62


class Loader:
    """One that has no source to give, or an odd one."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    def get_source(self, name: str) -> Any:
        return self.answer()


class Names(dict[str, Any]):
    """Names of a module that refuse to be asked."""

    def get(self, *_: object) -> Any:
        raise KeyboardInterrupt

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("no item")


def refuse(problem: Callable[[], BaseException]) -> Callable[..., NoReturn]:
    def method(*_: object, **__: object) -> NoReturn:
        raise problem()

    return method


_PROBLEMS: tuple[Callable[[], BaseException], ...] = (
    lambda: RuntimeError("refused"),
    lambda: SystemExit(3),
    KeyboardInterrupt,
    GeneratorExit,
    lambda: RecursionError("refused"),
    MemoryError,
    lambda: StopIteration(1),
    lambda: OSError(28, "no space left"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "refused"),
)
_ASKED = (
    *("__str__", "__repr__", "__getattribute__", "__getattr__", "__hash__", "__eq__", "__ne__", "__bool__", "__len__"),
    *("__iter__", "__reduce__", "__reduce_ex__", "__setattr__", "__delattr__", "__dir__", "__format__", "__sizeof__"),
    *("__getstate__", "__setstate__", "__lt__", "__contains__", "__getitem__", "__call__", "__index__", "__int__"),
    *("with_traceback", "add_note", "derive", "split", "subgroup"),
)
_READ = (
    *(
        "__traceback__",
        "__cause__",
        "__context__",
        "__suppress_context__",
        "__notes__",
        "__dict__",
        "__class__",
        "args",
    ),
    *(
        "__doc__",
        "__module__",
        "message",
        "status_code",
        "code",
        "errno",
        "host",
        "request",
        "response",
        "url",
        "detail",
    ),
    *("exceptions", "name", "obj", "filename", "lineno", "__wrapped__", "__tocsin__"),
)
_BASES: tuple[type[BaseException], ...] = (
    *(Exception, Exception, Exception, ValueError, KeyError, OSError, ConnectionError, TimeoutError, LookupError),
    *(RuntimeError, ArithmeticError, UnicodeError, NameError, AttributeError, ImportError),
    *(SyntaxError, MemoryError, RecursionError, BaseException),
)
_MESSAGES: tuple[Any, ...] = (
    *("", "plain", "\0", "\ud800", "\u202e evil \u2066", "a\nb\r\nc\x1b[2J", "é" * 300, "💥" * 3000, " " * 9000),
    *(f"password={SECRET}", f"https://user:{SECRET}@db.internal/x", f"{{'api_key': '{SECRET}', 'n': 1}}"),
    *(f"Authorization: Bearer {SECRET}", "-----BEGIN RSA PRIVATE KEY-----\n" + SECRET, "%s %d {0.__class__}"),
    *(b"\xff\0", None, 7, 10**5000, float("nan"), Text("odd"), Sulky(), (), [[]], {"password": SECRET}, object()),
    *(Exception, type, ..., NotImplemented, range(10**4), Ellipsis),
)
_NAMES = ("f", "", "a.b", "\0", "\ud800", "<lambda>", "x" * 5000, "\u202ef", "é", "a b\nc", "password")
_FILES = (
    *("shop.py", "<string>", "", "\0", "\ud800", "/dev/zero", "/dev/stdin", "/", "/nowhere/at.py", "x" * 5000, "\n.py"),
    *("<frozen x>", "../../etc/passwd", "/proc/self/mem", "\u202e.py", "http://h/x.py"),
)


class _Maker:
    """Makes one exception after another; what it does is noted in words, for when a test fails."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.what: list[str] = []
        self.is_slow = self.is_changed = False

    def case(self) -> Case:
        self.what, self.is_slow, self.is_changed = [], False, False
        exc = self.exception()
        roll = self.chance.random()
        if roll < 0.3:
            exc = self.chained(exc)
        elif roll < 0.45:
            exc = self.grouped(exc)
        if self.chance.random() < 0.1:
            exc = self.copied(exc)
        if self.chance.random() < 0.2:
            self.note(exc)
        return Case(exc, self.raiser(), self.facts(), self.is_slow, self.is_changed, self.what)

    def pick(self, *of: Any) -> Any:
        return self.chance.choice(of)

    # One exception

    def exception(self) -> BaseException:
        base = self.chance.choice(_BASES)
        exc: BaseException = base.__new__(self.kind(base))
        arguments = tuple(self.message() for _ in range(self.pick(0, 1, 1, 1, 2)))
        _set["args"](exc, arguments)
        if self.chance.random() < 0.05:
            vars(BaseException)["__dict__"].__set__(exc, Names())
        for _ in range(self.pick(0, 0, 1, 3)):
            key = self.pick("order", "password", "api_key", "status_code", "self", "__notes__", "\0", "response")
            held = vars(BaseException)["__dict__"].__get__(exc)
            dict.__setitem__(
                held, key, exc if key == "self" else SECRET if key in ("password", "api_key") else self.message()
            )
        return exc

    def kind(self, base: type[BaseException]) -> type[BaseException]:
        namespace: dict[str, Any] = {"__slots__": ("lead_id",)} if self.chance.random() < 0.1 else {}
        for _ in range(self.pick(0, 1, 1, 2, 4)):
            name = self.chance.choice(_ASKED)
            namespace[name] = self.method(name)
        for _ in range(self.pick(0, 0, 1, 2)):
            name = self.chance.choice(_READ)
            namespace[name] = self.pick(property(self.method(name)), Sulky(), 7, None)
        if self.chance.random() < 0.1:
            namespace["__module__"] = self.pick(None, 7, "", "\0", Text("odd"), "x" * 5000, Sulky())
        namespace.pop("__class__" if "__slots__" in namespace else "", None)
        self.what.append(f"{base.__name__} {sorted(namespace)}")
        try:
            name = self.chance.choice(("Odd", "Ödd", "x" * 2000))
            kind: type[BaseException] = self.metaclass(base)(name, (base,), namespace)
        except (TypeError, ValueError):  # such as a layout that cannot be
            return base
        if self.chance.random() < 0.05:
            type.__setattr__(kind, "__qualname__", self.pick("", "\ud800", "a.<locals>.b", "\0", Text("odd")))
        return kind

    def metaclass(self, base: type[BaseException]) -> type:
        if self.chance.random() < 0.85:
            return type
        names = (
            "__hash__",
            "__eq__",
            "__getattribute__",
            "__repr__",
            "__instancecheck__",
            "__bool__",
        )
        namespace: dict[str, Any] = {}
        for name in self.chance.sample(names, 3):
            namespace[name] = refuse(self.chance.choice(_PROBLEMS))
        for name in self.chance.sample(
            ("__name__", "__module__", "__qualname__", "__mro__", "__dict__", "__bases__"), 2
        ):
            namespace[name] = property(
                self.pick(refuse(self.chance.choice(_PROBLEMS)), lambda cls: Sulky(), lambda cls: 7)
            )
        self.what.append(f"metaclass {sorted(namespace)}")
        return type("Meta", (type,), namespace)

    def method(self, name: str) -> Callable[..., Any]:
        """What a method of that name does when it is called."""
        what = self.pick(
            *["refuse"] * 6, *["answer"] * 5, "itself", "wait", "allocate", "change", "log", "capture", "mark"
        )
        if name.startswith("__reduce") and what == "answer":
            what = "refuse"  # whoever copies it would take the answer apart, for days
        self.what.append(f"{name}: {what}")
        if what == "refuse":
            return refuse(self.chance.choice(_PROBLEMS))
        if what == "answer":
            answer = self.chance.choice(_MESSAGES)
            return lambda *_, **__: answer
        if what == "itself":
            return _calling_itself(name)
        if what == "wait":
            self.is_slow = True
            return _waiting
        if what == "allocate":
            self.is_slow = True
            return lambda *_, **__: "x" * _LARGE
        if what == "change":
            self.is_changed = True
            return _changing
        if what == "log":
            return lambda *_, **__: log.error("said while it was asked, password=%s", SECRET)
        if what == "capture":
            return lambda *_, **__: tocsin.track_error("tracked while it was asked")
        return lambda self, *_, **__: setattr(self, "__tocsin__", ("an id", None, 0, True))

    def message(self) -> Any:
        roll = self.chance.random()
        if roll < 0.004:
            self.is_slow = True
            return "e" + "\u0301" * 10_000_000
        if roll < 0.01:
            self.is_slow = True
            return f"password={SECRET} " * 100_000
        return self.chance.choice(_MESSAGES)

    def note(self, exc: BaseException) -> None:
        notes = self.pick([f"token={SECRET}"], [None, b"x", 7], 7, [Text("odd")], ["n" * 9000] * 900, Sulky(), {})
        dict.__setitem__(vars(BaseException)["__dict__"].__get__(exc), "__notes__", notes)

    # With others

    def chained(self, exc: BaseException) -> BaseException:
        long = self.chance.random() < 0.01
        first = last = exc
        for _ in range(5000 if long else self.pick(1, 2, 3)):
            link = ValueError("link") if long else self.exception()
            if self.chance.random() < 0.5:
                link = self.raised(link)
            _set[self.pick("__cause__", "__context__")](last, link)
            last = link
        if self.chance.random() < 0.3:
            _set["__context__"](last, first)
        self.what.append("chain of 5,000" if long else "chain")
        return first

    def raised(self, exc: BaseException) -> BaseException:
        try:
            self.raiser()(exc)
        except BaseException:
            return exc

    def grouped(self, exc: BaseException) -> BaseException:
        roll = self.chance.random()
        members = [exc, *(self.exception() for _ in range(self.pick(0, 1, 3)))]
        if roll < 0.01:
            self.is_slow = True
            members = [ValueError(1)] * 99_999 + members
        try:
            group: BaseException = BaseExceptionGroup(self.pick("g", "\0", f"password={SECRET}", "\ud800"), members)
        except BaseException:  # one that is in no group
            return exc
        depth = 500 if roll > 0.98 else self.pick(0, 0, 1, 12)
        for _ in range(depth):
            group = BaseExceptionGroup("g", [group])
        self.what.append(f"group of {len(members)}, {depth} deep")
        return group

    def copied(self, exc: BaseException) -> BaseException:
        """As it comes out of another process, where it comes out at all."""
        try:
            again = self.pick(copy.copy, lambda one: pickle.loads(pickle.dumps(one)))(exc)
        except BaseException:
            return exc
        return again if isinstance(again, BaseException) else exc

    # Where it is raised, and what is said with it

    def raiser(self) -> Callable[[BaseException], NoReturn]:
        """A function in a file and a module that are seldom what they seem."""
        if self.chance.random() < 0.5:
            return _raise
        file, name = self.chance.choice(_FILES), self.chance.choice(_NAMES)
        names: dict[str, Any] = self.pick(dict, dict, Names)(
            {
                "__name__": self.pick("shop", None, 7, Text("odd"), Sulky(), "\0"),
                "__file__": self.pick("shop.py", None, Sulky()),
                "__loader__": Loader(
                    self.pick(lambda: None, lambda: 7, lambda: "x\n" * 9, refuse(self.chance.choice(_PROBLEMS)))
                ),
                "__spec__": self.pick(None, Sulky()),
            }
        )
        code = _raise.__code__.replace(
            co_filename=self.pick(file, Text(file)),
            co_name=self.pick(name, Text(name)),
            co_qualname=self.pick(name, Text(name)),
            co_firstlineno=self.pick(1, 2**30, 0),
        )
        self.what.append(f"in {file[:20]!r}")
        return FunctionType(code, names)

    def facts(self) -> Any:
        endless: dict[str, Any] = {"password": SECRET, "list": [1]}
        endless["self"] = endless
        endless["list"].append(endless["list"])
        return self.pick(
            None,
            None,
            {"order": 7, "api_key": SECRET},
            endless,
            {"nan": float("nan"), "huge": 10**400, "bytes": b"\xff\0", 1: 2, None: 3, "a\0\ud800": "b\0\ud800"},
            {"odd": Sulky(), "proxy": MappingProxyType({"a": Sulky()})},
            Refusing(self.chance.choice(_PROBLEMS)()),
            {"in": Refusing(self.chance.choice(_PROBLEMS)())},
            Endless(),
            {"in": Endless()},
            {"long": "x" * 1_000_000, "wide": range(10**9), "key" * 9000: 1},
            Sulky(),
            [("a", 1)],
            {7.5: Text("value")},
        )


_LARGE = 50_000_000


def _raise(exc: BaseException) -> NoReturn:
    raise exc


def _calling_itself(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return method(self, *arguments, **named)

    return method


def _waiting(*_: object, **__: object) -> str:
    time.sleep(0.0005)
    return "slow"


def _changing(self: BaseException, *_: Any, **__: Any) -> str:
    """In the middle of being read it becomes another."""
    _set["args"](self, ("changed", f"password={SECRET}"))
    _set["__cause__"](self, ValueError("changed"))
    _set["__traceback__"](self, None)
    dict.clear(vars(BaseException)["__dict__"].__get__(self))
    return "changed"


def cases(seed: int, many: int) -> Iterator[Case]:
    """So many, each another."""
    maker = _Maker(seed)
    for _ in range(many):
        yield maker.case()
