"""The stand-in is as strict as what it stands for."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.standin.telegram import Broken, TelegramStandIn, plain_text


@pytest.fixture
def telegram() -> Iterator[TelegramStandIn]:
    with TelegramStandIn() as standin:
        yield standin


def call(telegram: TelegramStandIn, method: str, *, as_json: bool = True, **values: Any) -> dict[str, Any]:
    """Call the API as a client does."""
    body = json.dumps(values) if as_json else urllib.parse.urlencode(values)
    kind = "application/json" if as_json else "application/x-www-form-urlencoded"
    request = urllib.request.Request(
        f"{telegram.api_url}{telegram.token}/{method}", body.encode(), {"Content-Type": kind}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as problem:
        with problem:
            answer = json.load(problem)
    return answer


@pytest.mark.parametrize(
    "raw",
    ["a < b", "<b>a", "a</b>", "<b><i>a</b></i>", "<script>a</script>", "<code><b>a</b></code>", "<b class='x'>a</b>",
     "<!-- a -->", "<a onclick=1>a</a>", "a <", "<b"],
)  # fmt: skip
def test_broken_markup_is_refused(raw: str) -> None:
    """Unknown, unbalanced, within code, lone."""
    with pytest.raises(Broken, match="can't parse entities"):
        plain_text(raw)


def test_good_markup_is_read() -> None:
    """As people see it."""
    raw = '<b>a</b> &lt;&amp;&#x27; <code>b</code> <a href="https://x.example/?a=1&amp;b=2">c</a> <pre>d</pre>'

    assert plain_text(raw) == "a <&' b c d"


@pytest.mark.parametrize("as_json", [True, False])
def test_messages_are_kept_and_edited(as_json: bool, telegram: TelegramStandIn) -> None:
    """In both forms in which clients write."""
    sent = call(telegram, "sendMessage", as_json=as_json, chat_id=7, text="<b>x</b>", parse_mode="HTML")
    message_id = sent["result"]["message_id"]
    edit = {"chat_id": 7, "message_id": message_id, "text": "y"}

    assert call(telegram, "editMessageText", as_json=as_json, **edit)["ok"]
    assert "not modified" in call(telegram, "editMessageText", as_json=as_json, **edit)["description"]
    [message] = telegram.messages
    assert (message.text, message.edits) == ("y", ["x"])


def test_what_is_too_long_is_refused(telegram: TelegramStandIn) -> None:
    """Counted as Telegram counts."""
    assert call(telegram, "sendMessage", chat_id=7, text="😀" * 2048)["ok"]
    assert "too long" in call(telegram, "sendMessage", chat_id=7, text="😀" * 2049)["description"]


def test_a_wrong_token_is_refused(telegram: TelegramStandIn) -> None:
    """401, as there."""
    telegram.token, token = "other", telegram.token
    request = urllib.request.Request(f"{telegram.api_url}{token}/getMe")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    with caught.value as problem:
        assert problem.code == 401


def test_another_process_can_steer_it(telegram: TelegramStandIn) -> None:
    """By its control address."""
    url = telegram.api_url.removesuffix("/bot") + "/control"
    order = {"say": {"text": "/status", "chat_id": 7, "user_id": 7}, "switch": {"flood": [1, 3]}}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(order).encode()), timeout=5) as response:
        json.load(response)

    assert call(telegram, "getUpdates")["result"][0]["message"]["text"] == "/status"
    assert call(telegram, "sendMessage", chat_id=7, text="x")["parameters"] == {"retry_after": 3}
    with urllib.request.urlopen(url, timeout=5) as response:
        assert [request["answer"] for request in json.load(response)["requests"]] == [429]
