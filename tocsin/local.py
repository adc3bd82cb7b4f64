"""What is stored, looked at and acted on in the database itself: what `tocsin errors`, `show`, `resolve` … do."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from tocsin import clock
from tocsin.failures import NotFound
from tocsin.lifecycle import IllegalTransition, Status, Trigger
from tocsin.store import Store, alerts, groups, queries, shapes

Shape = dict[str, Any]


class Local:
    """A database, as `tocsin.remote.Remote` is a server: the same calls, the same shapes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_settled = True

    def errors(self, **filters: Any) -> Shape:
        """A page of errors; filters as in the API."""
        return shapes.error_list(*self._store.read_now(queries.list_errors, **filters))

    def groups(self, **filters: Any) -> Shape:
        """A page of groups."""
        status = filters.pop("status")
        wanted = Status(status) if status else None
        return shapes.group_list(*self._store.read_now(groups.list_groups, status=wanted, **filters))

    def group(self, name: str) -> Shape:
        """A group by its number, or by the id of one of its errors; raises `NotFound`."""
        is_number = re.fullmatch("[0-9]{1,9}", name)
        number = int(name) if is_number else self._store.read_now(groups.number_of_error, name)
        return self._store.read_now(shapes.whole_group, number, clock.now())

    def stats(self, hours: int, **filters: Any) -> Shape:
        """Statistics of the last hours."""
        return shapes.stats(self._store.read_now(queries.stats, hours, clock.now(), **filters), hours)

    def alerts(self, **filters: Any) -> Shape:
        """A page of alerts."""
        return shapes.alert_list(*self._store.read_now(alerts.list_alerts, **filters))

    def act(self, number: int, trigger: Trigger, *, by: str, span: timedelta | None = None) -> Shape:
        """What became of an act on a group; a failure is a shape too."""
        until = clock.now() + span if span is not None else None
        try:
            acted = self._store.write_now(groups.act, number, trigger, by=f"cli: {by}", via="cli", until=until)
        except (NotFound, IllegalTransition) as problem:
            return {"success": False, "error": str(problem)}
        self._is_settled = self._is_settled and trigger not in (Trigger.RESOLVE, Trigger.REOPEN)
        return shapes.acted(acted)

    def close(self) -> None:
        """Let the rows follow their groups: a server does it behind its answer, but there may be none at work."""
        while not self._is_settled:
            self._is_settled = not self._store.write_now(groups.settle_rows)
