"""Who did what, and what was refused."""

from __future__ import annotations

from datetime import datetime, timedelta

from tocsin.store import Store, audit


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
