"""
The tries of one call, of which whatever is seen on the way is one error.

A program that logs what went wrong and raises it again does so in each try. What the first try wrote out is the
error of the whole call. What later ones bring is kept until the try is over: it was this error once more if it is
what the try failed of, and an error of its own else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

from tocsin.contained import contained
from tocsin.exporter.raw import origins_of
from tocsin.ids import uuid7
from tocsin.instrumentation import state
from tocsin.instrumentation.state import Sighting

Mark = tuple[str, str | None, int, bool]
"""What `tocsin.instrumentation.capture` puts on an exception that is recorded; the first part is the error's id."""

INSIDE: Final = frozenset({"logging", "protect", "track_error"})
"""Who sees an exception that may still be what the try fails of."""

_MOST_HELD: Final = 50

current: ContextVar[Try | None] = ContextVar("tocsin_try", default=None)


class Call:
    """
    One call with all its tries.

    Args:
        mark: of its error; None until that is written out.
        is_rerun: a person has it made again: it is known already that it fails.
    """

    __slots__ = ("is_rerun", "mark")

    def __init__(self, mark: Mark | None = None, *, is_rerun: bool = False) -> None:
        self.mark: Mark | None = mark
        self.is_rerun = is_rerun


class Try:
    """One try, and what was seen in it; its thread may go on when nobody waits for it any more."""

    __slots__ = ("call", "held", "is_left", "is_over", "jobs", "outer", "written")

    def __init__(self, call: Call, outer: Try | None) -> None:
        self.call = call
        self.outer = outer  # the try that the call is made in
        self.is_over = False
        self.is_left = False  # it ran out of time, and its thread goes on
        self.written: list[tuple[BaseException, Mark]] = []
        self.held: list[Sighting] = []
        self.jobs: list[tuple[BaseException, Mapping[str, Any]]] = []

    def hold(self, sighting: Sighting) -> str | None:
        """Keep what was seen until it is known what it was; the id that it goes by, None where it is recorded now."""
        around = list(self._around())
        mark = next((one.call.mark for one in around if one.call.mark is not None), None)
        is_left = any(one.is_left for one in around)
        if (mark is None and not is_left) or len(self.held) >= _MOST_HELD:
            return None
        for one in self.held:
            if one.error is sighting.error:
                sighting = one
                break
        else:
            sighting.error_id = uuid7(sighting.time_ns)
            self.held.append(sighting)
        return mark[0] if mark is not None else sighting.error_id

    def wrote(self, error: BaseException, mark: Mark) -> None:
        """Note what was recorded in this try."""
        if len(self.written) < _MOST_HELD:
            self.written.append((error, mark))

    def settle(self, failure: BaseException | None) -> None:
        """
        The try is over: what it did not fail of is recorded by itself.

        Args:
            failure: what left it; None where it came to its end.
        """
        self.is_over = True
        if not (self.written or self.held or self.jobs):
            return
        with contained("telling the errors of a try"):
            own = {id(failure), *map(id, origins_of(failure, with_members=True))} if failure is not None else set()
            if self.call.mark is None:
                self.call.mark = next((mark for error, mark in self.written if id(error) in own), None)
            if self.outer is not None and failure is not None and self.call.mark is not None:
                self.outer.wrote(failure, self.call.mark)
            self.written.clear()
            held, self.held = self.held, []
            jobs, self.jobs = self.jobs, []
            capture = state.current
            if capture is not None:
                for sighting in held:
                    if id(sighting.error) not in own:
                        capture.see(sighting)
                for error, line in jobs:
                    if id(error) not in own:
                        capture.tell(line)

    def _around(self) -> Iterator[Try]:
        one: Try | None = self
        while one is not None:
            yield one
            one = one.outer


def under_way() -> Try | None:
    """The innermost try that is not over, of which this is a part."""
    one = current.get()
    while one is not None and one.is_over:
        one = one.outer
    return one
