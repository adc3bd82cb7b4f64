"""What still fails when the last drain is over: written to the spool, for whoever takes it over next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tocsin.exporter.spool import Spool
from tocsin.instrumentation.capture import Capture
from tocsin.instrumentation.state import Report, Sighting


class Aftermath:
    """
    The witness of a process that is ending: it starts no thread and touches no database.

    While the interpreter takes itself apart, anything may be gone that a step needs: what fails then, fails
    without a word.

    Args:
        open_spool: makes a spool at the first error; most programs end without one.
    """

    def __init__(self, open_spool: Callable[[], Spool | None]) -> None:
        self._open_spool = open_spool
        self._capture: Capture | None = None
        self._is_opening = False

    def see(self, sighting: Sighting) -> str | None:
        """Record one sighting."""
        with suppress(Exception):
            capture = self._opened()
            return capture.see(sighting) if capture is not None else None
        return None

    def tell(self, line: Mapping[str, Any]) -> None:
        """Write down what is no error."""
        with suppress(Exception):
            if (capture := self._opened()) is not None:
                capture.tell(line)

    def record(self, report: Report) -> str | None:
        """Nothing: what others exported until now is recorded."""
        return None

    def flush(self, timeout_s: float) -> bool:
        """Nothing is under way: it is written when it is seen."""
        return True

    def close(self, timeout_s: float) -> None:
        """Leave it to the next process."""
        if self._capture is not None:
            self._capture.close(timeout_s)

    def _opened(self) -> Capture | None:
        if self._capture is None and not self._is_opening:
            self._is_opening = True  # once: where it cannot be opened, nothing can
            spool = self._open_spool()
            self._capture = Capture(spool, _Nobody()) if spool is not None else None
        return self._capture


class _Nobody:
    """Instead of a drain."""

    def wake(self) -> None:
        return None

    def flush(self, timeout_s: float) -> bool:
        return True

    def finish(self, timeout_s: float) -> bool:
        return False
