"""
Telegram: alerts out, commands back.

The channel sends from every process. The bot listens in the leader only, by long polling of its own
rather than by the library's updater: an update is confirmed after it was executed, so that a crash
loses no ``/resolve``, and a process that has lost the lease stops at once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

# Otherwise the library warns each time it is asked how long to wait.
os.environ.setdefault("PTB_TIMEDELTA", "true")

import httpx
from sqlalchemy import Connection
from telegram import (
    Bot,
    BotCommand,
    CallbackQuery,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    ReplyParameters,
    Update,
    User,
)
from telegram import Message as Incoming
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Forbidden,
    InvalidToken,
    NetworkError,
    RetryAfter,
    TelegramError,
    TimedOut,
)
from telegram.request import HTTPXRequest

from tocsin import clock
from tocsin.alerts import commands, messages
from tocsin.alerts.access import Access, Sender, access
from tocsin.alerts.catalogue import Texts
from tocsin.alerts.channels import AskedToWait, Message, Moved, Refused, Unacceptable, Unreachable, scrubbed
from tocsin.alerts.limits import Limits
from tocsin.contained import contained, note
from tocsin.failures import StoreAway, TocsinError
from tocsin.settings import Settings
from tocsin.store import Store, alerts, audit
from tocsin.text import clean, one_line

NAME = "telegram"

T = TypeVar("T")

_PARSE = "parse entities"
_SAME = "not modified"
_REFUSALS = (
    "chat not found",
    "chat_write_forbidden",
    "deactivated",
    "kicked",
    "blocked",
    "need administrator rights",
    "not enough rights",
    "have no rights",
    "topic_closed",
    "topic_deleted",
    "group chat was upgraded",
    "peer_id_invalid",
    "user not found",
)
"""Parts of Telegram's 400 texts that stay true until somebody mends something."""

_NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
"""Failures before the request was on its way, so that nothing can have arrived."""


class Api:
    """A client of the Bot API as the settings want it; its failures are those of `channels`."""

    def __init__(self, settings: Settings, *, poll_s: float = 25.0) -> None:
        # These write whole addresses, and the token is a part of each.
        for name in ("httpx", "httpcore", "telegram"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._settings = settings
        proxy = settings.telegram_proxy
        self._clients = (
            _client(connections=8, read_timeout_s=10.0, proxy=proxy),
            _client(connections=2, read_timeout_s=poll_s + 10.0, proxy=proxy),
        )
        self._bot = Bot(
            settings.telegram_token or "",
            base_url=settings.telegram_api_url,
            request=self._clients[0],
            get_updates_request=self._clients[1],
        )

    async def call(self, ask: Callable[[Bot], Awaitable[T]]) -> T:
        """Ask for something; raises a `DeliveryError` without a secret in its text."""
        try:
            return await ask(self._bot)
        except TelegramError as problem:
            raise _failure(problem, self._settings) from None
        except (OSError, RuntimeError) as problem:  # not ValueError: that is the message's fault, not the chat's
            raise Unreachable(scrubbed(problem, self._settings)) from None

    async def updates(self, offset: int | None, wait_s: float) -> Sequence[Update]:
        """What people did since; an offset confirms all before it."""

        async def ask(bot: Bot) -> Sequence[Update]:
            return await bot.get_updates(
                offset=offset, timeout=int(wait_s), allowed_updates=["message", "callback_query"]
            )

        try:
            return await self.call(ask)
        except ValueError as problem:  # an answer that the library cannot read
            raise Unreachable(scrubbed(problem, self._settings)) from None

    async def close(self) -> None:
        """Close what is connected; the library's own way does so only after a greeting that may have failed."""
        for client in self._clients:
            with contained("closing Telegram"):
                await client.shutdown()


def _client(*, connections: int, read_timeout_s: float, proxy: str | None) -> HTTPXRequest:
    return HTTPXRequest(
        connection_pool_size=connections,
        read_timeout=read_timeout_s,
        connect_timeout=5.0,
        write_timeout=10.0,
        pool_timeout=5.0,
        proxy=proxy,
        httpx_kwargs={"verify": _trusted()},
    )


_trusted = functools.cache(httpx.create_ssl_context)
"""The authorities that a client trusts, read once: it takes longer than all else of its making."""


def _failure(problem: TelegramError, settings: Settings) -> TocsinError:
    text = scrubbed(problem, settings)
    if isinstance(problem, RetryAfter):
        pause = problem.retry_after
        return AskedToWait(pause.total_seconds() if isinstance(pause, timedelta) else float(pause))
    if isinstance(problem, ChatMigrated):
        return Moved(str(problem.new_chat_id))
    if isinstance(problem, InvalidToken):
        return Refused("Telegram does not know the bot's token (401): check TOCSIN_TELEGRAM_TOKEN")
    if isinstance(problem, Forbidden):
        return Refused(text)
    if isinstance(problem, BadRequest):
        return Refused(text) if any(part in text.lower() for part in _REFUSALS) else Unacceptable(text)
    if isinstance(problem, (TimedOut, NetworkError)):
        cause = problem.__cause__
        unclear = isinstance(cause, httpx.HTTPError) and not isinstance(cause, _NEVER_LEFT)
        return Unreachable(text, unclear=unclear)
    return Unreachable(text)


def _keyboard(message: Message) -> InlineKeyboardMarkup | None:
    if not message.buttons:
        return None
    return InlineKeyboardMarkup(
        [[InlineKeyboardButton(button.label, callback_data=button.data) for button in row] for row in message.buttons]
    )


class Telegram:
    """The channel."""

    name = NAME

    def __init__(self, settings: Settings) -> None:
        self.targets = tuple(str(chat_id) for chat_id in settings.telegram_chat_ids)
        self._api = Api(settings)

    async def send(self, address: str, message: Message, *, answer_to: int | None = None) -> str | None:
        async def once(text: str, parse_mode: str | None) -> Incoming:
            return await self._api.call(
                lambda bot: bot.send_message(
                    chat_id=int(address),
                    text=text,
                    parse_mode=parse_mode,
                    disable_notification=message.is_silent,
                    link_preview_options=LinkPreviewOptions(is_disabled=True),
                    reply_markup=_keyboard(message),
                    reply_parameters=ReplyParameters(answer_to, allow_sending_without_reply=True)
                    if answer_to
                    else None,
                ),
            )

        return str((await _or_plain(once, message)).message_id)

    async def edit(self, address: str, external_id: str, message: Message) -> None:
        async def once(text: str, parse_mode: str | None) -> object:
            return await self._api.call(
                lambda bot: bot.edit_message_text(
                    chat_id=int(address),
                    message_id=int(external_id),
                    text=text,
                    parse_mode=parse_mode,
                    link_preview_options=LinkPreviewOptions(is_disabled=True),
                    reply_markup=_keyboard(message),
                ),
            )

        try:
            await _or_plain(once, message)
        except Unacceptable as problem:
            if _SAME not in str(problem).lower():
                raise

    async def answer(self, query_id: str, text: str, *, as_alert: bool = False) -> None:
        """Answer a pressed button; without it the phone shows a wheel for a minute."""
        await self._api.call(
            lambda bot: bot.answer_callback_query(query_id, text=messages.fit(text, 190), show_alert=as_alert)
        )

    async def close(self) -> None:
        await self._api.close()


async def _or_plain(once: Callable[[str, str | None], Awaitable[T]], message: Message) -> T:
    """Rather without markup than not at all."""
    try:
        return await once(message.html, "HTML")
    except Unacceptable as problem:
        if _PARSE not in str(problem).lower():
            raise
        note("Telegram's markup", problem)
        return await once(message.plain, None)


class Listener:
    """The bot's ears; `run` while this process leads."""

    def __init__(
        self, settings: Settings, store: Store, channel: Telegram, limits: Limits, *, wake: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._channel = channel
        self._limits = limits
        self._wake = wake
        self._texts = Texts(settings.language)
        self._bot_name: str | None = None
        self._told: set[int] = set()  # strangers
        self.state = "starting"  #      starting, listening, unreachable, standby
        self.problem: str | None = None

    @property
    def _bot_id(self) -> str:
        return (self._settings.telegram_token or "").partition(":")[0]

    async def run(self) -> None:
        """Listen until cancelled; whatever Telegram does, it is tried again."""
        pause_s = self._limits.retry_first_s
        self.state, self.problem = "starting", None
        try:
            while True:
                api = Api(self._settings, poll_s=self._limits.poll_s)
                try:
                    await self._greet(api)
                    pause_s = self._limits.retry_first_s
                    await self._listen(api)
                except TocsinError as problem:
                    self.state, self.problem = "unreachable", str(problem)
                    if isinstance(problem, AskedToWait):
                        pause_s = max(pause_s, problem.pause_s)
                finally:
                    await api.close()
                await asyncio.sleep(pause_s * random.uniform(0.7, 1.0))
                pause_s = min(pause_s * 2, self._limits.bot_retry_max_s)
        finally:
            self.state = "standby"

    async def _greet(self, api: Api) -> None:
        me = await api.call(lambda bot: bot.get_me())
        self._bot_name = me.username
        await api.call(lambda bot: bot.delete_webhook(drop_pending_updates=False))
        offered = [BotCommand(name, self._texts(f"command.{name}")) for name in commands.LISTED]
        try:
            await api.call(lambda bot: bot.set_my_commands(offered))
        except TocsinError as problem:  # the list of commands is a help, not a need
            note("Telegram's list of commands", problem)

    async def _listen(self, api: Api) -> None:
        offset: int | None = None
        while True:
            updates = await api.updates(offset, self._limits.poll_s)
            self.state, self.problem = "listening", None
            for update in updates:
                with contained("a Telegram update"):
                    await self._handle(update)
                offset = update.update_id + 1

    async def _handle(self, update: Update) -> None:
        query, message = update.callback_query, update.message
        try:
            if query is not None:
                await self._pressed(update, query)
            elif message is not None:
                await self._said(update, message)
        except StoreAway:
            if query is not None:
                await self._channel.answer(query.id, self._texts("bot.away"))
            elif message is not None and message.chat.id in self._settings.telegram_chat_ids:
                away = messages.say(self._texts("bot.away"))
                await self._channel.send(str(message.chat.id), away, answer_to=message.message_id)

    async def _said(self, update: Update, message: Incoming) -> None:
        if message.migrate_to_chat_id is not None and message.chat.id in self._settings.telegram_chat_ids:
            new = str(message.migrate_to_chat_id)
            await self._store.write(alerts.remember_move, NAME, str(message.chat.id), new)
            return
        text = message.text or ""
        sender = _sender_of(message)
        may = await self._access(sender)
        if may == Access.STRANGER:
            if text.startswith("/") or sender.chat_type == "private":
                await self._stranger(sender, text)
            return
        if not text.startswith("/"):
            return
        answered: list[int] = []
        if message.reply_to_message is not None:
            reply_to = str(message.reply_to_message.message_id)
            answered = await self._store.read(alerts.group_of_message, NAME, str(sender.chat_id), reply_to)
        command = commands.parse(text, bot=self._bot_name, answered=answered)
        if command is None:
            return
        if isinstance(command, commands.Misunderstood):
            answer = commands.explain(command, self._settings)
        elif command.name == "start":
            answer = messages.say(self._start(sender))
        elif command.acts and may != Access.ACT:
            answer = messages.say(await self._refuse(sender, text))
        else:
            done = await self._execute(update.update_id, command, sender)
            if done is None:
                return
            answer = done
        await self._channel.send(str(sender.chat_id), answer, answer_to=message.message_id)

    async def _pressed(self, update: Update, query: CallbackQuery) -> None:
        command = commands.press(query.data or "")
        if query.message is None or command is None:
            await self._channel.answer(query.id, "")
            return
        chat = query.message.chat
        sender = Sender(
            user_id=query.from_user.id, chat_id=chat.id, chat_type=chat.type, name=_name_of(query.from_user)
        )
        may = await self._access(sender)
        if may == Access.STRANGER:
            await self._refuse(sender, query.data or "")
            await self._channel.answer(query.id, self._texts("bot.stranger", user=sender.user_id), as_alert=True)
            return
        if command.acts and may != Access.ACT:
            text = await self._refuse(sender, query.data or "")
            await self._channel.answer(query.id, text, as_alert=True)
            return
        done = await self._execute(update.update_id, command, sender)
        if done is None:
            await self._channel.answer(query.id, "")
        elif command.acts:
            await self._channel.answer(query.id, done.plain)
        else:
            await self._channel.answer(query.id, "")
            await self._channel.send(str(chat.id), done, answer_to=query.message.message_id)

    async def _access(self, sender: Sender) -> Access:
        if sender.chat_id in self._settings.telegram_chat_ids:
            return access(sender, self._settings)
        moved = [
            int(state.moved_to)
            for state in await self._store.read(alerts.states)
            if state.channel == NAME and state.moved_to and state.target in self._channel.targets
        ]
        return access(sender, self._settings, moved)

    async def _execute(self, update_id: int, command: commands.Command, sender: Sender) -> Message | None:
        """Do what a command says, once; None for an update that was executed before."""

        def work(connection: Connection) -> Message | None:
            if not alerts.is_first_sight(connection, self._bot_id, update_id):
                return None
            return commands.run(
                connection,
                command,
                self._settings,
                by=sender.label,
                via=NAME,
                leader="me",
                now=clock.now(),
            )

        try:
            done = await self._store.write(work)
        except StoreAway:
            raise
        except Exception as problem:
            note("a bot command", problem)
            return messages.say(self._texts("bot.failed"))
        if command.acts:
            self._wake()
        return done

    def _start(self, sender: Sender) -> str:
        ids = self._texts("bot.start", user=sender.user_id, chat=sender.chat_id)
        return f"{ids}\n{self._texts('bot.start.ready')}"

    async def _refuse(self, sender: Sender, tried: str) -> str:
        """Write down who tried what, and say what would allow it."""
        await self._store.write(
            audit.refuse,
            actor=sender.label,
            via=NAME,
            target=f"chat {sender.chat_id}",
            detail=one_line(clean(tried, 200), 200),
            now=clock.now(),
        )
        if sender.is_nobody:
            return self._texts("bot.nobody_may_act")
        ids = [*self._settings.telegram_user_ids, sender.user_id]
        line = f"TOCSIN_TELEGRAM_USER_IDS={','.join(str(user_id) for user_id in ids)}"
        return self._texts("bot.may_not_act", line=line)

    async def _stranger(self, sender: Sender, text: str) -> None:
        """Their own id, once; what they try is written down."""
        key = sender.user_id or sender.chat_id
        is_known = key in self._told
        if not is_known and len(self._told) >= _STRANGERS_KNOWN:
            return
        self._told.add(key)
        await self._refuse(sender, text)
        if is_known or sender.is_nobody:
            return
        say = self._texts("bot.stranger", user=sender.user_id)
        # While no chat is set up yet, whoever says /start is most likely who sets it up.
        if not self._settings.telegram_chat_ids and sender.chat_type == "private" and text.startswith("/start"):
            values = {"user": sender.user_id, "chat": sender.chat_id}
            say = f"{self._texts('bot.start', **values)}\n{self._texts('bot.start.private', **values)}"
        await self._channel.send(str(sender.chat_id), messages.say(say))


_STRANGERS_KNOWN = 10_000


def _sender_of(message: Incoming) -> Sender:
    user = message.from_user
    return Sender(
        user_id=user.id if user else None,
        chat_id=message.chat.id,
        chat_type=message.chat.type,
        name=_name_of(user) if user else "",
        is_anonymous=any((message.sender_chat, message.forward_origin, message.via_bot, user and user.is_bot)),
    )


def _name_of(user: User) -> str:
    return f"@{user.username}" if user.username else user.full_name
