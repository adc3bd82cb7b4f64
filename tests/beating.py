"""Signs of life for tests, and what is kept of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tocsin import clock
from tocsin.model import Batch, Beat
from tocsin.store import Store, beats, errors
from tocsin.store.beats import KeptBeat

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def nightly(**values: Any) -> Beat:
    """A beat that comes once a day and is well, unless a test says otherwise."""
    defaults: dict[str, Any] = {
        "name": "nightly",
        "timestamp": clock.now(),
        "environment": "production",
        "service": "shop",
        "every_s": DAY.total_seconds(),
    }
    return Beat(**{**defaults, **values})


async def put(store: Store, *told: Beat) -> None:
    """Store beats as the exporter does."""
    await store.write(errors.write_batch, Batch(entries=[], facts=list(told)), clock.now())


async def kept(store: Store) -> KeptBeat:
    """The only beat."""
    (beat,) = await store.read(beats.list_beats)
    return beat
