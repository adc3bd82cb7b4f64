"""To stand before a function of somebody else's, and to leave as if nothing had been."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final

_LAYER: Final = "_tocsin_layer"


@dataclass(slots=True, eq=False)
class Layer:
    """One function of ours on top of what it found; while it is off it only calls that."""

    before: Any
    inherited: bool  # found in a base class: there was nothing of this name here
    is_on: bool = True
    function: Any = None


class Patch:
    """
    A function of a module or a class, and ours before it.

    Where somebody has hooked in on top of ours it cannot be taken out: it is off from then on, for good, unless
    it comes to stand on top again. So a chain grows by what others add, however often tocsin starts.

    Args:
        owner, name: where the function is.
        make: gives the function of ours; it is handed the layer, and asks it whether it is on.
    """

    def __init__(self, owner: Any, name: str, make: Callable[[Layer], Callable[..., Any]]) -> None:
        self.owner = owner
        self.name = name
        self._make = make
        self._layer: Layer | None = None

    def install(self) -> None:
        """Stand before what is there; harmless when called twice."""
        found = getattr(self.owner, self.name)
        layer = layer_of(found)
        if layer is None:
            layer = Layer(found, isinstance(self.owner, type) and self.name not in vars(self.owner))
            ours = self._make(layer)
            functools.update_wrapper(ours, found)
            layer.function = ours
            setattr(ours, _LAYER, layer)
            setattr(self.owner, self.name, ours)
        if self._layer is not None and self._layer is not layer:
            self._layer.is_on = False
        layer.is_on = True
        self._layer = layer

    def uninstall(self) -> None:
        """Put back what was found, where nobody stands on top; harmless when called twice."""
        if self._layer is not None:
            self._layer.is_on = False
            self._layer = None
        while (layer := layer_of(getattr(self.owner, self.name))) is not None:
            if layer.inherited:
                delattr(self.owner, self.name)
                return
            setattr(self.owner, self.name, layer.before)


class Patches:
    """The patches of one file: put in place one by one as modules are imported, taken out together."""

    def __init__(self) -> None:
        self._all: dict[tuple[Any, str], Patch] = {}

    def install(self, owner: Any, name: str, make: Callable[[Layer], Callable[..., Any]]) -> None:
        """Stand before a function; harmless when called twice."""
        self._all.setdefault((owner, name), Patch(owner, name, make)).install()

    def uninstall(self) -> None:
        """Put back what was found, where nobody stands on top."""
        for patch in self._all.values():
            patch.uninstall()
        self._all.clear()


def layer_of(function: object) -> Layer | None:
    """The layer that a function is, if it is one of ours."""
    found = vars(function).get(_LAYER) if type(function) is FunctionType else None
    # Whoever wraps ours with `functools.wraps` gets what it carries too.
    return found if isinstance(found, Layer) and found.function is function else None
