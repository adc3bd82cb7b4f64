"""What a channel is, and the ways in which saying something can fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tocsin.failures import TocsinError
from tocsin.settings import Settings
from tocsin.store.alerts import Subject
from tocsin.text import clean, one_line


@dataclass(frozen=True, slots=True)
class Button:
    """A button under a message; `data` comes back when it is pressed (at most 64 bytes)."""

    label: str
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message; as a chat shows it, where no text is longer than 4,096 UTF-16 units, and what it is made of."""

    html: str  #                  Telegram's HTML
    plain: str
    news: str | None = None  #    on one line, what a person changed: for channels that cannot edit
    buttons: Sequence[Sequence[Button]] = ()
    is_silent: bool = False
    subject: Subject | None = None  # for channels that say more, or say it otherwise; None for an answer of the bot
    key: str = ""  #                  the delivery's id: the same for every attempt at it


class Channel(Protocol):
    """A way to people; raises the failures of this file, never with a secret in their text."""

    name: str
    targets: tuple[str, ...]

    async def send(self, address: str, message: Message) -> str | None:
        """Say it; the id under which it can be edited, if there is one."""
        ...

    async def edit(self, address: str, external_id: str, message: Message) -> None: ...

    async def close(self) -> None: ...


class DeliveryError(TocsinError):
    """Base of the ways in which a message does not arrive."""


class Unreachable(DeliveryError):
    """
    The channel is down or answers nonsense: worth another try.

    Args:
        unclear: it may have arrived all the same.
        is_slow: to ask often would not help, or be held against us: the pauses grow to many minutes.
    """

    def __init__(self, problem: str, *, unclear: bool = False, is_slow: bool = False) -> None:
        super().__init__(problem)
        self.unclear = unclear
        self.is_slow = is_slow


class AskedToWait(DeliveryError):
    """The channel wants nothing for `pause_s` seconds."""

    def __init__(self, pause_s: float) -> None:
        super().__init__(f"the channel asks to wait {pause_s:g} s")
        self.pause_s = pause_s


class Refused(DeliveryError):
    """The target takes nothing from us until somebody mends it."""


class Unacceptable(DeliveryError):
    """This one message is refused, or the one to edit is gone; others are not concerned."""


class Moved(DeliveryError):
    """The target has a new address for good."""

    def __init__(self, address: str) -> None:
        super().__init__(f"the chat has moved to {address}")
        self.address = address


def scrubbed(problem: BaseException | str, settings: Settings, *more: str) -> str:
    """What went wrong, on one line, with none of our secrets in it, nor of those that are added."""
    text = str(problem) or type(problem).__name__
    for secret in (*settings.secrets(), *more):  # before it is cut: half of a secret is too much
        text = text.replace(secret, "[secret]")
    return one_line(clean(text, 300), 300)
