"""
The thread that looks at this process twice a second, whatever the drain waits for.

A database that never answers holds up the drain for as long as it likes; what this process says of
itself, and what it notices of itself, must not wait for that.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from tocsin import clock
from tocsin.contained import contained, own_threads
from tocsin.exporter import life
from tocsin.exporter.spool import Spool

EVERY_S: Final = 0.5
STOPPING_S: Final = 0.25
"""Between two signs of life of a process that may be killed soon: they tell how long it had."""

_REST: Final = 20
"""A chore that took half a beat twice in a row rests for so many times as long; once may be the machine's fault."""

_END_S: Final = 0.5
_SHORTEST_S: Final = 0.01


Chore = Callable[[], float | None]


class Pulse:
    """
    Says that this process lives, and does what is to be done about twice a second.

    Args:
        spool: of this process; its `life` is asked for at each beat, since it may be another one by then.
        chores: done at each beat, in this order; one that fails or takes long is not the others' harm.
            They are quick (well under a millisecond), and keep a slower pace of their own; what one returns is
            after how many seconds it wishes for the next beat, at the latest.
        every_s: between two beats.
    """

    def __init__(self, spool: Spool, chores: Sequence[Chore] = (), *, every_s: float = EVERY_S) -> None:
        self._spool = spool
        self._chores = chores
        self._rests_until = [0.0] * len(chores)
        self._was_slow = [False] * len(chores)
        self._every_s = every_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tocsin-pulse", daemon=True)

    def start(self) -> None:
        """Start the thread; it lives as long as the process, and does not outlive a fork."""
        self._thread.start()

    def end(self) -> None:
        """End the thread, and wait for it within a bound."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def _run(self) -> None:
        own_threads.add(threading.get_ident())
        try:
            while not self._ending.is_set() and not sys.is_finalizing():
                self._ending.wait(max(self._beat(), _SHORTEST_S))
        finally:
            own_threads.discard(threading.get_ident())

    def _beat(self) -> float:
        """Do what is to be done; after how many seconds to do it again."""
        pause_s = min(self._every_s, STOPPING_S) if self._spool.life.is_stopping else self._every_s
        with contained("saying that this process lives"):
            self._spool.life.note_memory(life.resident_bytes() or 0, clock.now_ns())
        for number, chore in enumerate(self._chores):
            began = time.monotonic()
            if self._ending.is_set() or began < self._rests_until[number]:
                continue
            with contained("looking after this process"):
                pause_s = min(pause_s, chore() or pause_s)
            took_s = time.monotonic() - began
            is_slow = took_s > self._every_s / 2
            if is_slow and self._was_slow[number]:
                self._rests_until[number] = began + took_s * (1 + _REST)
            self._was_slow[number] = is_slow
        return pause_s
