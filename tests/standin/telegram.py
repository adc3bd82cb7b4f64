"""
A small, strict Bot API server on loopback, for tests, benchmarks and trying by hand.

It refuses what Telegram refuses (broken markup, texts too long, edits that change nothing), records
every request with its time, and can be told to misbehave. In another process::

    python -m tests.standin.telegram --port 8081
    curl 127.0.0.1:8081/control                                            # what it was told and asked
    curl 127.0.0.1:8081/control -d '{"say": {"text": "/resolve 1", "chat_id": 7, "user_id": 7}}'
    curl 127.0.0.1:8081/control -d '{"press": {"message_id": 1, "data": "res:1", "user_id": 7}}'
    curl 127.0.0.1:8081/control -d '{"switch": {"flood": [3, 2]}}'
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import parse_qsl

T = TypeVar("T")

TOKEN = "123456789:AAE_stand-in_token_for_tests_0123456789"
BOT = {"id": 123456789, "is_bot": True, "first_name": "Tocsin", "username": "tocsin_test_bot"}

_TAGS = {"b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "code", "pre", "a", "blockquote", "tg-spoiler"}
_ALONE = {"code", "pre"}


@dataclass
class Request:
    """One request as it came."""

    at: float  # monotonic
    method: str
    values: dict[str, Any]
    answer: int  # the status that was answered; 0 for none


@dataclass
class Sent:
    """One message in a chat, with the text that it has by now."""

    message_id: int
    chat_id: int
    text: str  #         as people see it, without markup
    raw: str
    at: float
    is_silent: bool
    keyboard: list[list[dict[str, Any]]]
    reply_to: int | None = None
    edits: list[str] = field(default_factory=list)  # the texts that it had before


class Broken(Exception):
    """What the API refuses."""

    def __init__(self, code: int, description: str, **parameters: int) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters


class _Markup(HTMLParser):
    """Telegram's HTML: few tags, each closed in its order, nothing within code."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            raise Broken(400, f'Bad Request: can\'t parse entities: Unsupported start tag "{tag}"')
        if self.open and self.open[-1] in _ALONE and not (self.open[-1] == "pre" and tag == "code"):
            raise Broken(400, "Bad Request: can't parse entities: a tag within code")
        if attrs and not (tag == "a" and [name for name, _ in attrs] == ["href"]):
            raise Broken(400, f'Bad Request: can\'t parse entities: attributes of "{tag}"')
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise Broken(400, f'Bad Request: can\'t parse entities: unexpected end tag "{tag}"')

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise Broken(400, "Bad Request: can't parse entities: a comment")

    def handle_decl(self, decl: str) -> None:
        raise Broken(400, "Bad Request: can't parse entities: a declaration")

    def handle_pi(self, data: str) -> None:
        raise Broken(400, "Bad Request: can't parse entities: an instruction")


def plain_text(raw: str) -> str:
    """The text of strict HTML; raises `Broken`."""
    bare = raw
    for tag in _TAGS:
        bare = bare.replace(f"</{tag}>", "")
    if bare.count("<") != sum(bare.count(f"<{tag}>") for tag in _TAGS) + bare.count('<a href="'):
        raise Broken(400, 'Bad Request: can\'t parse entities: a lone "<"')
    markup = _Markup()
    markup.feed(raw)
    markup.close()
    if markup.open:
        raise Broken(400, f"Bad Request: can't parse entities: can't find end tag of \"{markup.open[-1]}\"")
    return "".join(markup.text)


class TelegramStandIn:
    """The server; a context manager that starts and stops it."""

    def __init__(self, port: int = 0, *, token: str = TOKEN, on_event: Callable[[str], None] | None = None) -> None:
        self.token = token
        self.requests: list[Request] = []
        self.refusals: list[str] = []  #         descriptions of 400s, which no test should cause unasked
        self._sent: dict[tuple[int, int], Sent] = {}
        self._next_message = 1
        self._next_update = 1000
        self._updates: list[dict[str, Any]] = []
        self._confirmed = 0
        self._switches: dict[str, Any] = {}
        self._answers: list[dict[str, Any]] = []
        self._on_event = on_event or (lambda line: None)
        self._changed = threading.Condition()
        self._server = _Server(("127.0.0.1", port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> TelegramStandIn:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with self._changed:
            self._switches = {"closed": True}
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def api_url(self) -> str:
        """What belongs in ``TOCSIN_TELEGRAM_API_URL``."""
        return f"http://127.0.0.1:{self.port}/bot"

    # What tests look at.

    @property
    def messages(self) -> list[Sent]:
        """All messages, oldest first, each with its text of now."""
        with self._changed:
            return sorted(self._sent.values(), key=lambda sent: sent.message_id)

    @property
    def answers(self) -> list[dict[str, Any]]:
        """How callback queries were answered."""
        with self._changed:
            return list(self._answers)

    def calls(self, method: str) -> list[Request]:
        """The requests for one method."""
        with self._changed:
            return [request for request in self.requests if request.method == method]

    def wait_for(self, predicate: Callable[[TelegramStandIn], T], timeout_s: float = 10.0) -> T:
        """The first true value of `predicate(self)`, looked at after every request."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while not (value := predicate(self)):
                left_s = until - time.monotonic()
                if left_s <= 0:
                    shown = [sent.text for sent in self._sent.values()]
                    raise AssertionError(f"still {value!r} after {timeout_s} s; messages: {shown}")
                self._changed.wait(left_s)
            return value

    # What people do.

    def say(
        self,
        text: str,
        *,
        chat_id: int,
        user_id: int,
        chat_type: str | None = None,
        username: str | None = None,
        reply_to: int | None = None,
        update_id: int | None = None,
        **more: Any,
    ) -> int:
        """Somebody writes in a chat; returns the id of the update."""
        with self._changed:
            message: dict[str, Any] = {
                "message_id": self._number(),
                "date": int(time.time()),
                "chat": _chat(chat_id, chat_type),
                "from": _user(user_id, username),
                "text": text,
                **more,
            }
            if text.startswith("/"):
                length = len(text.split(maxsplit=1)[0].encode("utf-16-le")) // 2
                message["entities"] = [{"type": "bot_command", "offset": 0, "length": length}]
            if reply_to is not None:
                message["reply_to_message"] = self._as_message(self._sent[chat_id, reply_to])
            return self._add_update({"message": message}, update_id)

    def press(
        self, message_id: int, data: str, *, user_id: int, username: str | None = None, update_id: int | None = None
    ) -> int:
        """Somebody presses a button under a message; returns the id of the update."""
        with self._changed:
            sent = next(one for one in self._sent.values() if one.message_id == message_id)
            query = {
                "id": str(self._number()),
                "from": _user(user_id, username),
                "message": self._as_message(sent),
                "chat_instance": "1",
                "data": data,
            }
            return self._add_update({"callback_query": query}, update_id)

    def update(self, **update: Any) -> int:
        """Any other update."""
        with self._changed:
            return self._add_update(update, None)

    # How it misbehaves. Each switch holds until it is used up, or until `heal`.

    def flood(self, times: int, retry_after: int) -> None:
        """Answer 429 to the next sends and edits."""
        self._switch(flood=[times, retry_after])

    def fail(self, times: int, code: int = 500) -> None:
        """Answer 500 (or another status without a JSON body) to the next sends and edits."""
        self._switch(fail=[times, code])

    def hang(self, times: int = 1_000_000) -> None:
        """Never answer the next sends and edits."""
        self._switch(hang=times)

    def drop_replies(self, times: int = 1) -> None:
        """Do what is asked, then cut the connection instead of answering."""
        self._switch(drop=times)

    def stall(self, times: int = 1) -> None:
        """Do what is asked, then never answer."""
        self._switch(stall=times)

    def refuse(self, code: int = 403, description: str = "Forbidden: bot was blocked by the user") -> None:
        """Refuse every send and edit."""
        self._switch(refuse=[code, description])

    def refuse_markup(self) -> None:
        """Refuse everything with markup, as if it could not be parsed."""
        self._switch(markup=True)

    def migrate(self, old: int, new: int) -> None:
        """The group has become a supergroup."""
        self._switch(migrate=[old, new])

    def heal(self) -> None:
        with self._changed:
            self._switches = {}
            self._changed.notify_all()

    def _switch(self, **switches: Any) -> None:
        with self._changed:
            self._switches |= switches

    # The API.

    def handle(self, method: str, values: dict[str, Any]) -> dict[str, Any] | None:
        """Answer one request; None is no answer at all."""
        with self._changed:
            request = Request(time.monotonic(), method, values, 0)
            self.requests.append(request)
            try:
                answer = self._answer(method, values)
                request.answer = 200 if answer is not None else 0
            except Broken as problem:
                request.answer = problem.code
                if problem.code == 400 and not self._switches:
                    self.refusals.append(problem.description)
                self._on_event(f"{method}: refused, {problem.code} {problem.description}")
                raise
            finally:
                self._changed.notify_all()
            return answer

    def _answer(self, method: str, values: dict[str, Any]) -> dict[str, Any] | None:
        if method == "getMe":
            return {"ok": True, "result": BOT}
        if method == "getChat":
            self._misbehave(values)
            return {"ok": True, "result": _full_chat(int(values["chat_id"]))}
        if method == "getUpdates":
            return self._get_updates(values)
        if method in ("deleteWebhook", "setMyCommands"):
            return {"ok": True, "result": True}
        if method == "answerCallbackQuery":
            self._misbehave(values)
            self._answers.append(values)
            self._on_event(f"answer to a button: {values.get('text', '')}")
            return {"ok": True, "result": True}
        if method in ("sendMessage", "editMessageText"):
            if self._take("hang"):
                self._on_event(f"{method}: no answer")
                self._changed.wait_for(lambda: "hang" not in self._switches, 60)
                return None
            self._misbehave(values)
            answer = self._send(values) if method == "sendMessage" else self._edit(values)
            self._changed.notify_all()
            if self._take("stall"):
                self._changed.wait_for(lambda: self._switches.get("closed"), 60)
                return None
            return None if self._take("drop") else answer
        raise Broken(404, "Not Found: method not found")

    def _misbehave(self, values: dict[str, Any]) -> None:
        if (flood := self._switches.get("flood")) and self._take("flood"):
            raise Broken(429, f"Too Many Requests: retry after {flood[1]}", retry_after=flood[1])
        if (fail := self._switches.get("fail")) and self._take("fail"):
            raise Broken(fail[1], "")
        if refuse := self._switches.get("refuse"):
            raise Broken(refuse[0], refuse[1])
        if self._switches.get("markup") and values.get("parse_mode"):
            raise Broken(400, "Bad Request: can't parse entities: told to")
        if (moved := self._switches.get("migrate")) and int(values.get("chat_id", 0)) == moved[0]:
            raise Broken(400, "Bad Request: group chat was upgraded to a supergroup chat", migrate_to_chat_id=moved[1])

    def _take(self, name: str) -> bool:
        """Use up one of a switch's times."""
        value = self._switches.get(name)
        left = value[0] if isinstance(value, list) else value
        if not left:
            return False
        left -= 1
        if left == 0 and name != "hang":
            del self._switches[name]
        elif isinstance(value, list):
            self._switches[name] = [left, *value[1:]]
        else:
            self._switches[name] = left
        return True

    def _send(self, values: dict[str, Any]) -> dict[str, Any]:
        text = _checked(values)
        reply = values.get("reply_parameters")
        sent = Sent(
            message_id=self._number(),
            chat_id=int(values["chat_id"]),
            text=text,
            raw=values["text"],
            at=time.monotonic(),
            is_silent=str(values.get("disable_notification", "")).lower() in ("true", "1"),
            keyboard=_keyboard(values),
            reply_to=int(reply["message_id"]) if isinstance(reply, dict) else None,
        )
        self._sent[sent.chat_id, sent.message_id] = sent
        quiet = " (silent)" if sent.is_silent else ""
        self._on_event(f"message {sent.message_id} to {sent.chat_id}{quiet}:\n{text}\n{_labels(sent.keyboard)}")
        return {"ok": True, "result": self._as_message(sent)}

    def _edit(self, values: dict[str, Any]) -> dict[str, Any]:
        text = _checked(values)
        sent = self._sent.get((int(values["chat_id"]), int(values["message_id"])))
        if sent is None:
            raise Broken(400, "Bad Request: message to edit not found")
        keyboard = _keyboard(values)
        if sent.raw == values["text"] and sent.keyboard == keyboard:
            raise Broken(
                400,
                "Bad Request: message is not modified: specified new message content and reply markup are "
                "exactly the same as a current content and reply markup of the message",
            )
        sent.edits.append(sent.text)
        sent.text, sent.raw, sent.keyboard = text, values["text"], keyboard
        self._on_event(f"edit of {sent.message_id}:\n{text}\n{_labels(keyboard)}")
        return {"ok": True, "result": self._as_message(sent)}

    def _get_updates(self, values: dict[str, Any]) -> dict[str, Any]:
        offset = int(values.get("offset") or 0)
        if offset:
            self._updates = [update for update in self._updates if update["update_id"] >= offset]
        if not self._updates:
            wait_s = float(values.get("timeout") or 0)
            self._changed.wait_for(lambda: self._updates or self._switches.get("closed"), wait_s)
        return {"ok": True, "result": list(self._updates)}

    def _number(self) -> int:
        number = self._next_message
        self._next_message += 1
        return number

    def _add_update(self, update: dict[str, Any], update_id: int | None) -> int:
        if update_id is None:
            update_id = self._next_update
            self._next_update += 1
        self._updates.append({"update_id": update_id, **update})
        self._changed.notify_all()
        return update_id

    def _as_message(self, sent: Sent) -> dict[str, Any]:
        return {
            "message_id": sent.message_id,
            "date": int(time.time()),
            "chat": _chat(sent.chat_id, None),
            "from": BOT,
            "text": sent.text,
        }

    # By hand, and from another process.

    def control(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Do what ``POST /control`` says; answer what ``GET /control`` says."""
        if "say" in wanted:
            self.say(**wanted["say"])
        if "press" in wanted:
            self.press(**wanted["press"])
        if "switch" in wanted:
            self._switch(**wanted["switch"])
        if wanted.get("heal"):
            self.heal()
        return {
            "now": time.monotonic(),
            "messages": [asdict(sent) for sent in self.messages],
            "requests": [asdict(request) for request in list(self.requests) if request.method != "getUpdates"],
            "answers": self.answers,
            "refusals": list(self.refusals),
        }


def _checked(values: dict[str, Any]) -> str:
    raw = values.get("text", "")
    text = plain_text(raw) if values.get("parse_mode") == "HTML" else raw
    if not text.strip():
        raise Broken(400, "Bad Request: message text is empty")
    if len(text.encode("utf-16-le")) // 2 > 4096:
        raise Broken(400, "Bad Request: message is too long")
    return text


def _keyboard(values: dict[str, Any]) -> list[list[dict[str, Any]]]:
    markup = values.get("reply_markup") or {}
    rows: list[list[dict[str, Any]]] = markup.get("inline_keyboard", [])
    for row in rows:
        for button in row:
            if len(button.get("callback_data", "").encode()) > 64:
                raise Broken(400, "Bad Request: BUTTON_DATA_INVALID")
    return rows


def _labels(keyboard: list[list[dict[str, Any]]]) -> str:
    return " ".join(f"[{button['text']}]" for row in keyboard for button in row)


def _full_chat(chat_id: int) -> dict[str, Any]:
    gifts = ("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription", "gifts_from_channels")
    more = {"accent_color_id": 0, "max_reaction_count": 11, "accepted_gift_types": dict.fromkeys(gifts, True)}
    return _chat(chat_id, None) | more


def _chat(chat_id: int, chat_type: str | None) -> dict[str, Any]:
    kind = chat_type or ("private" if chat_id > 0 else "supergroup")
    return {"id": chat_id, "type": kind, "title": "team"} if chat_id < 0 else {"id": chat_id, "type": kind}


def _user(user_id: int, username: str | None) -> dict[str, Any]:
    user: dict[str, Any] = {"id": user_id, "is_bot": False, "first_name": f"user{user_id}"}
    return {**user, "username": username} if username else user


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], api: TelegramStandIn) -> None:
        super().__init__(address, _Handler)
        self.api = api

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no concern of a stand-in."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY: what is measured is not ours

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        return None

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/control":
            self._reply(200, self.server.api.control(json.loads(body) if body else {}))
            return
        token, _, method = self.path.removeprefix("/bot").partition("?")[0].rpartition("/")
        if token != self.server.api.token:
            self._reply(401, {"ok": False, "error_code": 401, "description": "Unauthorized"})
            return
        try:
            answer = self.server.api.handle(method, self._values(body))
        except Broken as problem:
            if problem.code >= 500:
                self._reply(problem.code, None)
                return
            failure: dict[str, Any] = {"ok": False, "error_code": problem.code, "description": problem.description}
            self._reply(problem.code, {**failure, "parameters": problem.parameters} if problem.parameters else failure)
            return
        if answer is None:
            self.close_connection = True
            return
        self._reply(200, answer)

    def _values(self, body: bytes) -> dict[str, Any]:
        if "json" in (self.headers.get("Content-Type") or ""):
            values: dict[str, Any] = json.loads(body or b"{}")
            return values
        pairs = dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body)))
        return {name: _decoded(name, value) for name, value in pairs.items()}

    def _reply(self, code: int, answer: dict[str, Any] | None) -> None:
        body = b"oops" if answer is None else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if answer is not None else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _decoded(name: str, value: str) -> Any:
    """Form bodies carry what is not text as JSON."""
    if name in ("text", "parse_mode", "callback_query_id", "chat_id", "message_id"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


@contextmanager
def telegram_stand_in() -> Iterator[TelegramStandIn]:
    """A stand-in for one test; nothing that was sent may have been refused unasked."""
    with TelegramStandIn() as standin:
        yield standin
    assert [text for text in standin.refusals if "not modified" not in text] == []


def main() -> None:
    parser = argparse.ArgumentParser(description="A Bot API server on loopback that prints what it receives.")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--token", default=TOKEN)
    arguments = parser.parse_args()
    standin = TelegramStandIn(arguments.port, token=arguments.token, on_event=lambda line: print(line, flush=True))
    print(f"TOCSIN_TELEGRAM_API_URL={standin.api_url} TOCSIN_TELEGRAM_TOKEN={standin.token}", flush=True)
    with standin:
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
