"""The channel of those who have no other: alerts as text on stdout."""

from __future__ import annotations

import sys
from typing import TextIO

from tocsin.alerts.channels import Message
from tocsin.ids import uuid7

_REMEMBERED = 1000


class Console:
    """Prints alerts; of an edit only what a person changed, since lines cannot be taken back."""

    name = "console"
    targets: tuple[str, ...] = ("stdout",)

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._news: dict[str, str | None] = {}

    async def send(self, address: str, message: Message) -> str | None:
        self._print(message.plain)
        external_id = uuid7()
        self._remember(external_id, message.news)
        return external_id

    async def edit(self, address: str, external_id: str, message: Message) -> None:
        if message.news and message.news != self._news.get(external_id):
            self._print(message.news)
        self._remember(external_id, message.news)

    async def close(self) -> None:
        return None

    def _remember(self, external_id: str, news: str | None) -> None:
        self._news[external_id] = news
        while len(self._news) > _REMEMBERED:
            del self._news[next(iter(self._news))]

    def _print(self, text: str) -> None:
        out = self._out or sys.stdout
        encoding = getattr(out, "encoding", None) or "utf-8"
        framed = "\n".join(f"│ {line}" for line in text.splitlines())
        print(framed.encode(encoding, "replace").decode(encoding), file=out, flush=True)
