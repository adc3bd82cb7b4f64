"""What rings, and what people do with it, as JSON to an address of the team's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.alerts.conftest import SHORT
from tests.alerts.samples import NOW, group, plain_settings, seen, subject
from tests.conftest import ErrorFactory
from tests.waiting import aeventually
from tocsin import checks, clock
from tocsin.alerts import messages
from tocsin.alerts.channels import AskedToWait, DeliveryError, Refused, Unacceptable, Unreachable
from tocsin.alerts.scheduler import channels_of, running, send_test
from tocsin.alerts.webhook import Webhook, event, judge, shown
from tocsin.lifecycle import Trigger
from tocsin.model import Severity
from tocsin.serve import shown_channels
from tocsin.settings import Settings
from tocsin.store import Store, alerts, groups
from tocsin.store.audit import Entry


@dataclass
class Hook:
    """Somebody's server: what it got, and what it answers next."""

    url: str = ""
    got: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [body for _, body in self.got]

    @property
    def keys(self) -> list[str]:
        return [headers["idempotency-key"] for headers, _ in self.got]


@pytest.fixture
def hook() -> Iterator[Hook]:
    one = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            one.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status, headers = one.answers.pop(0) if one.answers else (204, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        one.url = f"http://127.0.0.1:{server.server_port}/hooks/token-123?key=s3cret"
        yield one
        server.shutdown()
        thread.join()


def settings_for(hook: Hook, **values: Any) -> Settings:
    defaults = {"webhook_url": hook.url, "webhook_allow_private": True, "public_url": "https://errors.shop.example"}
    return plain_settings(**{**defaults, **values})


async def test_what_rings_and_what_people_do_are_events(
    hook: Hook, store: Store, put: Any, error: ErrorFactory
) -> None:
    """Not every count: a program wants to know of turns, and can ask for the rest."""
    async with running(settings_for(hook), store, limits=SHORT):
        await put(error(severity=Severity.CRITICAL))
        await aeventually(lambda: hook.events)
        await put(*(error(severity=Severity.CRITICAL) for _ in range(3)))
        await aeventually(lambda: _is_quiet(store))
        await store.write(groups.act, 1, Trigger.RESOLVE, by="@anna (17)", via="telegram", now=clock.now())
        await aeventually(lambda: len(hook.events) == 2)

    rang, changed = hook.events
    assert (rang["event"], rang["reason"], rang["severity"]) == ("alert", "new", "critical")
    assert rang["group"]["number"] == 1 and rang["group"]["service"] == "shop" and rang["group"]["status"] == "open"
    assert rang["group"]["url"] == "https://errors.shop.example/admin/debug/groups/1"
    assert rang["text"].startswith("🔴 CRITICAL #1 new")
    assert changed["event"] == "changed" and changed["id"] == rang["id"]
    assert changed["group"]["status"] == "resolved" and changed["group"]["count"] == 4
    assert changed["change"]["by"] == "@anna (17)" and changed["change"]["via"] == "telegram"
    assert len(set(hook.keys)) == 2 and hook.keys[0] == rang["id"]


async def _is_quiet(store: Store) -> bool:
    """Whether the alerts have looked at all that came."""
    return not await store.read(alerts.marked, 10)


async def test_a_repeat_has_the_key_of_the_first(hook: Hook, store: Store, put: Any, error: ErrorFactory) -> None:
    """For an alert and for a change alike, so that the other side can drop it."""
    hook.answers = [(500, {}), (502, {}), (204, {}), (500, {})]
    async with running(settings_for(hook), store, limits=SHORT):
        await put(error())
        await aeventually(lambda: len(hook.events) == 3)
        await store.write(groups.act, 1, Trigger.RESOLVE, by="@anna", via="api", now=clock.now())
        await aeventually(lambda: len(hook.events) == 5)

    assert [one["event"] for one in hook.events] == ["alert"] * 3 + ["changed"] * 2
    assert len(set(hook.keys[:3])) == len(set(hook.keys[3:])) == 1 != len(set(hook.keys))


async def test_a_fold_is_one_event_with_all_its_groups(hook: Hook, store: Store, put: Any, error: ErrorFactory) -> None:
    """And another when more have joined."""
    async with running(settings_for(hook, fold_above=2), store, limits=SHORT):
        await put(*(error(f"Error{number}") for number in range(4)))
        await aeventually(lambda: hook.events)
        await put(error("Late"))
        await aeventually(lambda: len(hook.events) > 1)

    first, second = hook.events[:2]
    assert (first["event"], first["reason"], first["group"], len(first["groups"])) == ("alert", "fold", None, 4)
    assert second["event"] == "changed" and sorted(one["number"] for one in second["groups"]) == [1, 2, 3, 4, 5]


async def test_a_wait_that_is_asked_for_is_kept(hook: Hook, store: Store, put: Any, error: ErrorFactory) -> None:
    hook.answers = [(429, {"Retry-After": "1"})]
    async with running(settings_for(hook), store, limits=SHORT) as house:
        began = clock.now()
        await put(error())
        await aeventually(lambda: len(hook.events) == 2)
        assert clock.now() - began >= timedelta(seconds=0.95)
        assert house.state()["channels"][0]["target"] == hook.url.partition("/hooks")[0]


async def test_an_address_that_is_gone_is_parked_and_named_without_its_secrets(
    hook: Hook, store: Store, put: Any, error: ErrorFactory
) -> None:
    """Health says which; what waits for it is not lost."""
    hook.answers = [(410, {})] * 2
    async with running(settings_for(hook), store, limits=SHORT) as house:
        await put(error())
        await aeventually(lambda: "answers 410" in str(house.state()["channels"]))
        assert "s3cret" not in str(house.state()) and "token-123" not in str(house.state())
        await aeventually(lambda: len(hook.events) == 3)
    [listed] = (await store.read(alerts.list_alerts))[0]
    assert listed.deliveries[0].state == "sent"
    assert "s3cret" not in str(listed) and "token-123" not in str(listed)


async def test_a_private_address_is_refused_until_it_is_allowed(hook: Hook, store: Store) -> None:
    """With the name of the setting; `tocsin check` says the same."""
    refused = await send_test(settings_for(hook, webhook_allow_private=False), store)
    taken = await send_test(settings_for(hook), store)

    [(_, _, problem)] = refused
    assert "no address of the open internet; TOCSIN_WEBHOOK_ALLOW_PRIVATE=1" in str(problem)
    assert [one["event"] for one in hook.events] == ["test"] and taken[0][2] is None


def test_check_says_where_it_leads_and_sends_nothing(hook: Hook) -> None:
    [good] = checks.check_webhook(settings_for(hook))
    [closed] = checks.check_webhook(settings_for(hook, webhook_allow_private=False))
    [away] = checks.check_webhook(settings_for(hook, webhook_url="http://127.0.0.1:1/token-123"))
    [off] = checks.check_webhook(plain_settings())

    assert [one.state for one in (good, closed, away, off)] == ["ok", "FAIL", "FAIL", "off"]
    assert "TOCSIN_WEBHOOK_ALLOW_PRIVATE" in closed.mend
    assert "token-123" not in f"{good}{closed}{away}" and hook.events == []


_DATE = "Sat, 14 Mar 2026 09:27:23 GMT"  # half a minute after NOW


@pytest.mark.parametrize(
    ("status", "headers", "kind", "pause_s"),
    [
        (301, {"location": "http://x/token"}, Refused, None),
        (308, {}, Refused, None),
        (401, {}, Refused, None),
        (403, {}, Refused, None),
        (404, {}, Refused, None),
        (410, {}, Refused, None),
        (400, {}, Unacceptable, None),
        (413, {}, Unacceptable, None),
        (422, {}, Unacceptable, None),
        (408, {}, Unreachable, None),
        (429, {}, Unreachable, None),
        (429, {"retry-after": "7"}, AskedToWait, 7),
        (429, {"retry-after": "99999999999999999999"}, AskedToWait, 3600),
        (503, {"retry-after": _DATE}, AskedToWait, 30),
        (503, {"retry-after": "Sat, 14 Mar 2020 09:27:23 GMT"}, AskedToWait, 0),
        (503, {"retry-after": "soon"}, Unreachable, None),
        (503, {"retry-after": "-5"}, Unreachable, None),
        (500, {"retry-after": "7"}, Unreachable, None),
        (100, {}, Unacceptable, None),
    ],
)
def test_each_answer_has_its_meaning(
    status: int, headers: dict[str, str], kind: type[DeliveryError], pause_s: float | None
) -> None:
    """Mended by people, waited for, tried again, or this one refused."""
    with pytest.raises(DeliveryError) as caught:
        judge(status, headers, "https://hooks.example", NOW)

    assert type(caught.value) is kind and "token" not in str(caught.value)
    if isinstance(caught.value, AskedToWait):
        assert caught.value.pause_s == pause_s


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_good_answer_is_taken_for_received(status: int) -> None:
    judge(status, {}, "https://hooks.example", NOW)


def test_an_event_has_the_shape_that_is_written_down() -> None:
    """What programs read: keys stay, more may come."""
    settings = plain_settings(public_url="https://errors.shop.example")
    act = Entry(at=NOW, actor="@anna (17)", via="api", action="resolve", target="#42", detail=None, allowed=True)
    about = subject(group(exception_type="KeyError"), error=seen(), act=act)
    body = event("changed", replace(messages.render(about, settings, NOW), key="delivery-1"), settings)

    assert json.loads(json.dumps(body)) == body | {"text": body["text"]}
    assert datetime.fromisoformat(body.pop("at")).tzinfo == UTC
    assert body.pop("text").startswith("🟠 HIGH #42 new\nKeyError\n")
    one = {
        "number": 42,
        "title": "KeyError: 'phone'",
        "service": "shop",
        "environment": "production",
        "release": "v2",
        "status": "open",
        "severity": "high",
        "category": "unknown",
        "exception_type": "KeyError",
        "culprit": "shop.orders in create_order",
        "count": 1,
        "first_seen": "2026-03-14T08:26:53.000000+00:00",
        "last_seen": "2026-03-14T09:26:53.000000+00:00",
        "url": "https://errors.shop.example/admin/debug/groups/42",
    }
    assert body == {
        "version": 1,
        "event": "changed",
        "id": "delivery-1",
        "alert_id": about.alert.id,
        "reason": "new",
        "severity": "high",
        "may_repeat": False,
        "group": one,
        "groups": [one],
        "change": {"status": "open", "by": "@anna (17)", "via": "api", "at": "2026-03-14T09:26:53.000000+00:00"},
    }


def test_every_way_is_named_at_the_start_without_a_secret(hook: Hook) -> None:
    """The line of `tocsin serve`."""
    settings = settings_for(
        hook,
        telegram_token="1:secret",
        telegram_chat_ids=(1, 2),
        smtp_url="smtp://u:p@mail.example",
        email_to=("a@shop.example",),
    )

    host = hook.url.partition("/hooks")[0]
    assert shown_channels(settings) == f"Telegram, 2 chats; e-mail, 1 address; webhook, {host}"
    assert [channel.name for channel in channels_of(settings)] == ["telegram", "email", "webhook"]
    assert Webhook(settings).targets == (shown(settings),) == (host,)
