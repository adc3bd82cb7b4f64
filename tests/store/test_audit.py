"""Who did what, and what was refused."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from tocsin.store import Store, audit, schema


async def test_what_was_done_to_a_target_is_told_newest_first(store: Store, now: datetime) -> None:
    """With who, by which way, and whether it was allowed; of others nothing."""

    async def note(action: str, target: str, minute: int, *, allowed: bool = True) -> None:
        moment = now + timedelta(minutes=minute)
        await store.write(
            audit.record, actor="@anna (17)", via="telegram", action=action, target=target, allowed=allowed, now=moment
        )

    await note("resolve", "#42", 0)
    await note("resolve", "#43", 1)
    await note("mute", "#42", 2, allowed=False)

    newest, oldest = await store.read(audit.of_target, "#42")

    assert (newest.action, newest.allowed, newest.at) == ("mute", False, now + timedelta(minutes=2))
    assert (oldest.action, oldest.allowed, oldest.actor, oldest.via) == ("resolve", True, "@anna (17)", "telegram")
    assert await store.read(audit.of_target, "#42", 1) == [newest]


async def test_what_has_no_target_is_recorded_too(store: Store, now: datetime) -> None:
    """A log-in is an act on nothing in particular."""
    await store.write(audit.record, actor="token: full", via="page", action="log-in", now=now)

    assert await store.read(audit.of_target, "#1") == []


async def test_what_one_person_tries_in_vain_fills_no_table(store: Store, now: datetime) -> None:
    """So many rows an hour, and one that counts the rest; others are not concerned, and an hour later all is new."""

    async def refuse(actor: str, times: int, minute: int) -> None:
        moment = now + timedelta(minutes=minute)
        for _ in range(times):
            await store.write(
                audit.refuse, actor=actor, via="telegram", target="chat 17", detail="/resolve 1", now=moment
            )

    def rows(connection: Any) -> list[tuple[str, str, str]]:
        table = schema.audit
        return [
            (row.actor, row.action, row.detail)
            for row in connection.execute(select(table).where(~table.c.allowed).order_by(table.c.id))
        ]

    await refuse("@ben (18)", audit.REFUSALS_AN_HOUR + 5, 0)
    await refuse("@eve (19)", 1, 1)
    noted = ("@ben (18)", "refused", "/resolve 1")
    counted = ("@ben (18)", "refused more", "5")
    eve = ("@eve (19)", "refused", "/resolve 1")
    assert await store.read(rows) == [noted] * audit.REFUSALS_AN_HOUR + [counted, eve]

    await refuse("@ben (18)", 1, 60)
    assert (await store.read(rows))[-1] == noted
    assert len(await store.read(rows)) == audit.REFUSALS_AN_HOUR + 3
