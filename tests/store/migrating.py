"""Many processes that migrate one database at once."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.forking import context
from tocsin.store import Store, migrate, open_store


def migrate_at_once(url: str, many: int) -> list[Any]:
    """What each of so many said, or a text when it failed."""
    answers, together = context().Queue(), context().Barrier(many)
    processes = [context().Process(target=_migrate, args=(url, together, answers)) for _ in range(many)]
    for process in processes:
        process.start()
    results = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    return results


def _migrate(url: str, together: Any, answers: Any) -> None:
    said: list[str] = []
    try:
        store = open_store(url)
        together.wait(120)
        asyncio.run(_migrate_in_loop(store, said)) if store.dialect == "postgresql" else migrate.migrate_now(
            store, said.append
        )
        answers.put(said)
    except Exception as problem:
        answers.put(f"{type(problem).__name__}: {problem}")


async def _migrate_in_loop(store: Store, said: list[str]) -> None:
    await migrate.migrate(store, said.append)
    await store.close()
