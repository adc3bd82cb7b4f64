"""
The workers that say what the outbox holds; they run in every process.

One task a target at most, so that a chat that is down holds up no other. Each attempt is claimed
first and marked afterwards; a process that dies in between leaves a claim that runs out.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from sqlalchemy import Connection

from tocsin import clock
from tocsin.alerts import messages
from tocsin.alerts.channels import AskedToWait, Channel, Message, Moved, Refused, Unacceptable, Unreachable
from tocsin.alerts.limits import Limits
from tocsin.contained import note
from tocsin.failures import StoreAway
from tocsin.settings import Settings
from tocsin.store import Store, alerts
from tocsin.store.alerts import Claim

Mark = Callable[[Connection], object]


class Deliverer:
    """Finds targets for which something is due, and serves each in a task of its own."""

    def __init__(
        self, settings: Settings, store: Store, channels: Sequence[Channel], limits: Limits, *, owner: str
    ) -> None:
        self._settings = settings
        self._store = store
        self._channels: Mapping[str, Channel] = {channel.name: channel for channel in channels}
        self._limits = limits
        self._owner = owner
        self._going: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._stopping = False

    async def look(self) -> None:
        """Start a task for each target that has something due and is not being served."""
        for channel, target in await self._store.read(alerts.due_targets, list(self._channels)):
            if self._stopping or (channel, target) in self._going:
                continue
            if target not in self._channels[channel].targets:  # a chat that was taken off the list hears nothing
                continue
            task = asyncio.create_task(self._serve(channel, target), name=f"tocsin-deliver-{channel}")
            self._going[channel, target] = task
            task.add_done_callback(partial(self._ended, (channel, target)))

    def _ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._going.pop(key, None)

    async def stop(self, within_s: float) -> None:
        """Let the attempts under way end, and begin no other."""
        self._stopping = True
        tasks = list(self._going.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=within_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _serve(self, channel: str, target: str) -> None:
        try:
            while not self._stopping:
                claimed_at = time.monotonic()
                claim = await self._store.write(
                    alerts.claim,
                    channel,
                    target,
                    owner=self._owner,
                    claim_s=self._limits.claim_s,
                    per_minute=self._settings.messages_per_minute,
                )
                if claim is None:
                    return
                mark = await self._attempt(claim, claimed_at)
                if mark is not None:
                    await self._write(mark)
        except StoreAway:
            return  # what is due stays due
        except Exception as problem:
            note("delivering an alert", problem)

    async def _attempt(self, claim: Claim, claimed_at: float) -> Mark | None:
        """Make one attempt; how it went, still to be marked."""
        channel = self._channels[claim.channel]
        limits = self._limits
        try:
            message = replace(messages.render(claim.subject, self._settings, clock.now()), key=claim.delivery_id)
            # A process that was stopped for a while must not speak for whoever took over from it.
            if time.monotonic() - claimed_at > max(limits.claim_s - limits.attempt_s, limits.claim_s / 3):
                return None
            async with asyncio.timeout(limits.attempt_s):
                external_id = await _say(channel, claim, message)
        except AskedToWait as problem:
            error, pause_s = str(problem), problem.pause_s
            return lambda connection: alerts.mark_retry(connection, claim, error, pause_s=pause_s)
        except Moved as problem:
            address = problem.address
            return lambda connection: alerts.move(connection, claim, address)
        except Refused as problem:
            error = str(problem)
            return lambda connection: alerts.park(connection, claim, error, retry_s=limits.park_s)
        except Unacceptable as problem:
            error = str(problem)
            return lambda connection: alerts.mark_failed(connection, claim, error)
        except (Unreachable, TimeoutError) as problem:
            longest_s = limits.retry_max_s
            if isinstance(problem, Unreachable):
                error, unclear = str(problem), problem.unclear
                longest_s = limits.slow_retry_max_s if problem.is_slow else longest_s
            else:
                error, unclear = f"no answer within {limits.attempt_s:g} s", True
            pause_s = self._pause_s(claim.attempt, longest_s)
            return lambda connection: alerts.mark_retry(connection, claim, error, pause_s=pause_s, unclear=unclear)
        except Exception as problem:
            # Nothing is known against the target: were it paused, this message would block it for ever.
            note("sending an alert", problem)
            error, pause_s = type(problem).__name__, self._pause_s(claim.attempt, limits.park_s)
            return lambda connection: alerts.postpone(connection, claim, error, pause_s=pause_s)
        if claim.external_id is not None:
            return lambda connection: alerts.mark_edited(connection, claim)
        return lambda connection: alerts.mark_sent(connection, claim, external_id)

    def _pause_s(self, attempt: int, longest_s: float) -> float:
        grown_s = self._limits.retry_first_s * 2.0 ** min(attempt - 1, 20)
        return min(grown_s, longest_s) * random.uniform(0.6, 1.0)

    async def _write(self, mark: Mark) -> None:
        """Mark how an attempt went, also when the database is away just then: else it would be made again."""
        deadline = time.monotonic() + self._limits.claim_s
        while True:
            try:
                await self._store.write(mark)
                return
            except StoreAway:
                if self._stopping or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(min(self._limits.away_s, 1.0) / 2)


async def _say(channel: Channel, claim: Claim, message: Message) -> str | None:
    if claim.external_id is None:
        return await channel.send(claim.address, message)
    await channel.edit(claim.address, claim.external_id, message)
    return claim.external_id
