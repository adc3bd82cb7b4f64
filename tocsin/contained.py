"""Keep tocsin's own failures inside tocsin: counted, said now and then, never raised."""

from __future__ import annotations

import sys
import time
from collections import Counter

from tocsin.text import clean, one_line

failures: Counter[str] = Counter()
"""How often tocsin itself failed, by what it was doing; health shows it."""

own_threads: set[int] = set()
"""Threads of tocsin itself: what goes wrong in them is never captured, or it would feed itself."""

_QUIET_S = 60.0
_last_said: dict[str, float] = {}


class contained:  # noqa: N801  (reads as a statement: `with contained("capture"):`)
    """
    Hold back an `Exception` that tocsin's own code raises where it meets the user's code.

    `KeyboardInterrupt`, `SystemExit` and cancellation are not ours and pass.
    """

    __slots__ = ("doing",)

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: object) -> bool:
        if not isinstance(exc, Exception):
            return False
        note(self.doing, exc)
        return True


def note(doing: str, exc: BaseException) -> None:
    """Count one own failure, and say it on stderr at most once a minute for each kind of work."""
    failures[doing] += 1
    moment = time.monotonic()
    if moment - _last_said.get(doing, -_QUIET_S) < _QUIET_S:
        return
    _last_said[doing] = moment
    try:
        # It may quote foreign text, and a terminal obeys what it is sent.
        text = one_line(clean(f"tocsin: {doing} failed: {type(exc).__name__}: {exc}", 500), 500)
        sys.stderr.write(text.encode("ascii", "backslashreplace").decode() + "\n")
    except Exception:  # (stderr may be closed; there is nowhere left to say it)
        pass
