"""
Libraries that a thread of ours loads while the program goes on; a fork waits until that is done.

A child forked in the midst has half a library for ever: its own import of it fails, or waits for a thread that
is not there.
"""

from __future__ import annotations

import logging  # noqa: F401  (first: what is registered later is called earlier, and this keeps its lock over a fork)
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tocsin.contained import contained

MOST_S: Final = 2.0
"""How long a fork, or a thread of ours, waits for the other at most."""

_EVERY_S: Final = 0.002
_loading: dict[int, int] = {}  # by thread; no lock, which a fork could take along
_forking: dict[int, int] = {}


@contextmanager
def loading() -> Iterator[None]:
    """Around an import in a thread of ours, and around whatever imports at its first call."""
    _wait_while(_forking)
    own = threading.get_ident()
    _loading[own] = _loading.get(own, 0) + 1
    try:
        yield
    finally:
        _loading[own] -= 1
        if not _loading[own]:
            del _loading[own]


def _wait_while(others: dict[int, int]) -> None:
    own = threading.get_ident()
    until = time.monotonic() + MOST_S
    while any(ident != own for ident in list(others)) and time.monotonic() < until:
        time.sleep(_EVERY_S)


def _before_fork() -> None:
    with contained("waiting for a library"):
        own = threading.get_ident()
        _forking[own] = _forking.get(own, 0) + 1
        _wait_while(_loading)


def _after_in_parent() -> None:
    with contained("going on after a fork"):
        own = threading.get_ident()
        _forking[own] -= 1
        if not _forking[own]:
            del _forking[own]


def _after_in_child() -> None:
    _forking.clear()
    own = threading.get_ident()
    for ident in list(_loading):
        if ident != own:
            del _loading[ident]


os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
