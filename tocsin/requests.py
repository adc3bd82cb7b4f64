"""
The requests that this process is answering just now, and whether it takes new ones.

One table for the whole process: who watches requests enters them, who stops waits for them, health counts them.
"""

from __future__ import annotations

from operator import itemgetter
from time import monotonic
from typing import Any, Final, NamedTuple

RETRY_AFTER_S: Final = 5
"""When a client that is refused may come again: somebody else will answer by then."""

REFUSED: Final = b'{"success": false, "error": "this process is shutting down"}'
"""What it is answered, with 503."""


class UnderWay(NamedTuple):
    """One request that is being answered."""

    request: Any  #   the ASGI scope, or the WSGI environ
    began: float  #   monotonic
    work: object  #   the coroutine that answers it, or the number of its thread


_under_way: dict[int, tuple[Any, float, object]] = {}  # as `UnderWay`, which costs a quarter of a microsecond to make
is_stopping = False
"""Whether the server in this process has been asked to stop: new requests are refused."""


_nobody = memoryview(bytearray(8)).cast("Q")
_cell = _nobody  # where their number is kept


def entered(request: Any, work: object = None) -> None:
    """
    A request is being answered from now on, until `left`, which whoever calls this promises to call.

    Args:
        request: the scope or environ: the object itself is its key.
        work: the coroutine or the thread (`threading.get_ident()`) that answers it; its stack is told where
            the request outlives a stop.
    """
    _under_way[id(request)] = request, monotonic(), work
    _cell[0] = len(_under_way)


def left(request: Any) -> None:
    """It is answered; also one that was never entered."""
    _under_way.pop(id(request), None)
    _cell[0] = len(_under_way)


def is_under_way(request: Any) -> bool:
    """Whether somebody has entered it."""
    return id(request) in _under_way


def active() -> int:
    """How many are under way."""
    return len(_under_way)


def under_way() -> list[UnderWay]:
    """All of them, the oldest first."""
    found = sorted(_under_way.values(), key=itemgetter(1))
    return [UnderWay(*one) for one in found]


def stop() -> None:
    """Refuse new requests from now on; safe from a signal handler."""
    global is_stopping
    is_stopping = True


def keep_in(cell: memoryview[int] | None) -> None:
    """Have the number kept in a cell of memory as it changes, from now on; None for in none."""
    global _cell
    _cell = _nobody if cell is None else cell
    _cell[0] = len(_under_way)


def begin_anew() -> None:
    """In a forked process: the requests, and the stop, are its parent's."""
    global is_stopping
    _under_way.clear()
    is_stopping = False
    keep_in(None)
