"""What tocsin raises: one base, and a child for each thing that a caller can act on."""

from __future__ import annotations


class TocsinError(Exception):
    """Base of all that tocsin raises on purpose; its text says what happened and what to do."""


class SettingsError(TocsinError):
    """Settings with wrong values; ``problems`` has a line for each, secrets left out."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreAway(TocsinError):
    """The database, or the server, cannot be reached or refuses to work just now: worth another try later."""

    def __init__(self, text: str = "", *, pause_s: float | None = None) -> None:
        super().__init__(text)
        self.pause_s = pause_s  # for how long it wants to be left alone; None where it does not say


class TableMissing(StoreAway):
    """The database is there, and somebody has taken a table or a column of tocsin's out of it."""


class ServerRefuses(StoreAway):
    """A server is there and takes nothing from us until somebody changes a setting."""


class Overtaken(TocsinError):
    """Someone else has stored that part of a spool segment: nothing was stored now; ``segment`` names it."""

    def __init__(self, segment: str) -> None:
        super().__init__(f"the spool segment {segment} was read by someone else")
        self.segment = segment


class SchemaMismatch(TocsinError):
    """The database has a schema that this version cannot use; ``found`` and ``expected``."""

    def __init__(self, found: str | None, expected: str, todo: str) -> None:
        super().__init__(f"the database is at schema {found or 'none'}, this tocsin needs {expected}: {todo}")
        self.found = found
        self.expected = expected


class NotFound(TocsinError):
    """No such group, error or instance; ``what`` names it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"there is no {what}")
        self.what = what


class BadInput(TocsinError):
    """A value from outside that cannot be used; ``field`` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
