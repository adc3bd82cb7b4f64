"""Who may do what in a chat: a table of ids, nothing else. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from tocsin.settings import Settings
from tocsin.text import clean, one_line

GROUP_ANONYMOUS = 1087968824
CHANNEL_ANONYMOUS = 136817688
TELEGRAM_ITSELF = 777000
NOBODY = frozenset({GROUP_ANONYMOUS, CHANNEL_ANONYMOUS, TELEGRAM_ITSELF})
"""Users that stand for somebody who is not named; Bot API, ``Message.from``."""


class Access(StrEnum):
    """What somebody may do, in one chat."""

    STRANGER = "stranger"
    READ = "read"
    ACT = "act"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who says something, and where."""

    user_id: int | None
    chat_id: int
    chat_type: str  #           private, group, supergroup, channel
    name: str = ""
    is_anonymous: bool = False  # writes in the name of a chat, forwards others' words, or by way of another bot

    @property
    def is_nobody(self) -> bool:
        """Whether no person can be held to what is said."""
        return self.is_anonymous or self.user_id is None or self.user_id in NOBODY

    @property
    def label(self) -> str:
        """The sender as the audit names them: ``@anna (17)``."""
        return f"{one_line(clean(self.name, 64), 64) or 'someone'} ({self.user_id})"


def access(sender: Sender, settings: Settings, moved_chats: Collection[int] = ()) -> Access:
    """
    What a sender may do.

    Args:
        moved_chats: new ids of allowed chats that have become supergroups.
    """
    if sender.chat_id not in settings.telegram_chat_ids and sender.chat_id not in moved_chats:
        return Access.STRANGER
    if sender.is_nobody:
        return Access.READ
    if settings.telegram_user_ids:
        return Access.ACT if sender.user_id in settings.telegram_user_ids else Access.READ
    is_one_to_one = sender.chat_type == "private" and sender.chat_id == sender.user_id
    return Access.ACT if is_one_to_one else Access.READ
