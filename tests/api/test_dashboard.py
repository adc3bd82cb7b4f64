"""The page, as somebody who uses it sees it."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from tests.api.conftest import TOKENS, Put, client_of, settings_with
from tocsin.api import create_app
from tocsin.api.auth import LOGIN
from tocsin.lifecycle import Trigger
from tocsin.model import Severity
from tocsin.store import Store

PAGE = "/admin/debug"

FRAMES = [
    {"module": "starlette.routing", "function": "handle", "file": "routing.py", "line": 288, "text": "await app()"},
    {
        "module": "shop.orders",
        "function": "create_order",
        "file": "shop/orders.py",
        "line": 42,
        "text": 'phone = customer["phone"]',
        "in_app": True,
        "before": ["async def create_order(request):"],
        "after": ["    return phone"],
    },
]


async def test_an_empty_page_says_how_to_send_the_first_error(client: httpx.AsyncClient) -> None:
    page = await client.get(PAGE)

    assert page.status_code == 200
    assert "No errors yet" in page.text
    assert "tocsin run -- uvicorn app:app" in page.text


async def test_the_list_shows_the_open_groups(client: httpx.AsyncClient, put: Put) -> None:
    await put("A", title="KeyError: phone", culprit="shop.orders in create", count=1234)
    await put("B", title="ValueError: resolved one")
    await client.post("/api/debug/groups/2/resolve")

    page = (await client.get(PAGE)).text

    for text in ("KeyError: phone", "shop.orders in create", "1.2k", f'href="{PAGE}/groups/1"', ">Connected<"):
        assert text in page
    assert "resolved one" not in page
    assert "resolved one" in (await client.get(f"{PAGE}?status=all")).text
    assert "resolved one" in (await client.get(f"{PAGE}?status=resolved")).text


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("severity=critical", ["first"]),
        ("service=worker", ["second"]),
        ("environment=staging", ["third"]),
        ("category=amocrm", ["first"]),
        ("q=SECOND", ["second"]),
        ("q=nothing-like-it", []),
    ],
)
async def test_filters_are_in_the_address(client: httpx.AsyncClient, put: Put, query: str, shown: list[str]) -> None:
    await put("A", title="the first", severity=Severity.CRITICAL, category="amocrm")
    await put("B", title="the second", service="worker")
    await put("C", title="the third", environment="staging")

    page = (await client.get(f"{PAGE}?{query}")).text

    assert [name for name in ("first", "second", "third") if f">the {name}<" in page] == shown
    if not shown:
        assert "Nothing found" in page


async def test_a_wrong_filter_is_a_page_that_says_so(client: httpx.AsyncClient) -> None:
    page = await client.get(f"{PAGE}?status=closed")

    assert page.status_code == 400
    assert page.headers["content-type"].startswith("text/html")
    assert "status: give open" in page.text


async def test_a_long_list_has_pages(client: httpx.AsyncClient, put: Put) -> None:
    for number in range(55):
        await put(f"E{number}", title=f"number {number}.")

    first = (await client.get(PAGE)).text
    (older,) = re.findall(r'href="([^"]*before=[^"]*)"', first)
    second = (await client.get(older.replace("&amp;", "&"))).text

    shown = re.findall(r"number (\d+)\.", re.sub(r"<title>.*?</title>", "", first + second))
    assert sorted(map(int, shown)) == list(range(55))


async def test_a_group_shows_what_is_known(client: httpx.AsyncClient, put: Put) -> None:
    await put(
        context={
            "tocsin.frames": FRAMES,
            "tocsin.exception.causes": [{"type": "LookupError", "message": "no such field"}],
            "tocsin.breadcrumbs": [
                {"time": "2026-03-14T09:26:53.123+00:00", "kind": "log", "level": "info", "message": "order is paid"},
                {"kind": "http", "method": "POST", "host": "bank", "path": "/pay", "status": 402, "ms": 18.5},
            ],
            "http.route": "/orders/{id}",
            "user_id": "u7",
            "cart": {"items": 3},
            "thread.name": "MainThread",
        },
        stack="Traceback: the text of it",
        release="2.4.0",
        trace_id="ab" * 16,
    )
    await client.post("/api/debug/groups/1/acknowledge")

    page = (await client.get(f"{PAGE}/groups/1")).text

    for text in ("create_order", "shop/orders.py:42", "LookupError", "no such field", "/orders/{id}", "u7", "2.4.0"):
        assert text in page
    for text in ("09:26:53.123", "order is paid", "bank/pay", "402, 18.5 ms"):
        assert text in page
    for text in ("MainThread", "Traceback: the text of it", "1 frame in libraries", "ab" * 16, "acknowledge</b>"):
        assert text in page
    assert "&#34;items&#34;: 3" in page
    assert "<i>42</i>    phone = customer[&#34;phone&#34;]</span>" in page  # as deep as it stands


@pytest.mark.parametrize(
    "context",
    [
        {"tocsin.frames": "no list"},
        {"tocsin.frames": [None, 1, "x", {}, {"line": "42", "before": "abc", "text": None, "vars": [1]}]},
        {"tocsin.exception.causes": [None, {}, {"type": None}]},
        {"tocsin.exception.causes": {"type": "x"}},
        {"tocsin.breadcrumbs": {"kind": "log"}},
        {"tocsin.breadcrumbs": [None, {}, {"kind": []}, {"kind": "log", "message": 5}, {"kind": "http", "ms": []}]},
        {"http.route": None, "url.path": ["a", {"b": [1.5, True, None]}]},
        {},
    ],
)
async def test_a_context_of_any_shape_is_shown(client: httpx.AsyncClient, put: Put, context: dict[str, Any]) -> None:
    """It may come from any program."""
    await put(context=context)

    assert (await client.get(f"{PAGE}/groups/1")).status_code == 200


async def test_each_of_the_last_errors_can_be_looked_at(client: httpx.AsyncClient, put: Put) -> None:
    first = await put(message="the first message")
    await put(message="the second message")
    other = await put("Other", message="of another group")

    newest = (await client.get(f"{PAGE}/groups/1")).text
    asked = (await client.get(f"{PAGE}/groups/1?error={first.id}")).text
    foreign = (await client.get(f"{PAGE}/groups/1?error={other.id}")).text

    assert message_in(newest) == message_in(foreign) == "the second message"
    assert message_in(asked) == "the first message"


def message_in(page: str) -> str:
    return page.split('class="message mono">')[1].split("<", maxsplit=1)[0]


async def test_only_actions_that_change_something_are_offered(client: httpx.AsyncClient, put: Put) -> None:
    """By the lifecycle, for each status."""
    await put()
    offered = {}
    for action in ("acknowledge", "ignore", "resolve", "reopen", "mute"):
        await client.post(f"/api/debug/groups/1/{action}")
        page = (await client.get(f"{PAGE}/groups/1")).text
        offered[action] = {one for one in Trigger if f'action="{PAGE}/groups/1/{one}"' in page}

    assert offered == {
        "acknowledge": {"resolve", "mute", "ignore", "reopen"},
        "ignore": {"resolve", "mute", "reopen"},
        "resolve": {"reopen", "ignore"},
        "reopen": {"resolve", "acknowledge", "mute", "ignore"},
        "mute": {"resolve", "acknowledge", "ignore", "reopen"},
    }


@pytest.mark.parametrize(
    ("template", "link"),
    [
        ("https://grafana.example/t/{trace_id}", "https://grafana.example/t/" + "ab" * 16),
        ("javascript:alert('{trace_id}')", None),
        ("java\tscript:alert(1)//{trace_id}", None),
        ("data:text/html,{trace_id}", None),
        (None, None),
    ],
)
async def test_a_trace_is_linked_only_to_the_web(
    store: Store, put: Put, template: str | None, link: str | None
) -> None:
    await put(trace_id="ab" * 16)
    app = create_app(settings_with(trace_url=template), store=store)
    async with client_of(app, token=TOKENS["full"]) as client:
        page = (await client.get(f"{PAGE}/groups/1")).text

    if link:
        assert f'<a class="link" href="{link}" rel="noopener noreferrer" target="_blank">' in page
    else:
        assert "target=" not in page


PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</textarea></title></style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt; &amp;lt;",
)


class Strict(HTMLParser):
    """Notes what a browser would act upon."""

    ours = frozenset(
        re.findall(
            r"\w+",
            """a aside b body button code dd details div dl dt footer form h1 h2 head header html i img input label
            li line link main meta nav option p pre rect script section select span summary svg table tbody td th
            thead time title tr ul""",
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag not in self.ours:
            self.bad.append(tag)
        self.bad += [name for name in names if name.startswith("on") or name == "style"]
        for name in ("href", "src", "action"):
            if name in names and not (names[name] or "").startswith(("/admin/debug", "#main")):
                self.bad.append(f"{name}={names[name]}")
        if tag == "script" and not names.get("src"):
            self.bad.append("script")


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_nothing_that_comes_from_an_error_is_ever_markup(store: Store, put: Put, payload: str) -> None:
    """In every field of it, on every page."""
    frame = dict.fromkeys(("module", "function", "file", "text"), payload)
    await put(
        payload,
        message=payload,
        title=payload,
        culprit=payload,
        service=payload,
        environment=payload,
        category=payload,
        release=payload,
        mechanism=payload,
        trace_id=payload,
        stack=payload,
        context={
            payload: payload,
            "nested": {payload: [payload]},
            "http.route": payload,
            "url.full": payload,
            "thread.name": payload,
            "tocsin.frames": [
                frame
                | {"line": 1, "in_app": True, "before": [payload], "after": [payload], "vars": {payload: payload}},
                frame,
            ],
            "tocsin.exception.causes": [{"type": payload, "message": payload}],
            "tocsin.breadcrumbs": [{"kind": "log", "time": payload, "message": payload, "level": payload}],
        },
    )
    app = create_app(settings_with(trace_url="https://trace.example/{trace_id}"), store=store)
    async with client_of(app) as client:
        await client.post(LOGIN, data={"token": TOKENS["full"]})
        pages = [
            await client.get(PAGE),
            await client.get(PAGE, params={"q": payload, "service": payload, "status": "all"}),
            await client.get(PAGE, params={"status": payload}),
            await client.get(f"{PAGE}/groups/1"),
            await client.get(f"{PAGE}/groups/1", params={"error": payload[:40]}),
            await client.get(LOGIN, params={"code": payload}),
            await client.post(LOGIN, data={"token": "x", "next": payload}),
        ]

    for page in pages:
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        parser = Strict()
        parser.feed(page.text)
        assert parser.bad == [], page.url
    assert html.unescape(pages[3].text).count(payload) >= 12


async def test_files_are_served_from_a_fixed_list(client: httpx.AsyncClient) -> None:
    page = (await client.get(PAGE)).text
    for address in re.findall(r'"(/admin/debug/static/[^"]+)"', page):
        assert (await client.get(address)).status_code == 200
    for path in ("app.py", "%2e%2e/app.py", "..%2fapp.py", "page.css/", "", "templates/base.html"):
        assert (await client.get(f"{PAGE}/static/{path}")).status_code == 404


async def test_the_way_to_the_page(client: httpx.AsyncClient) -> None:
    for path in ("/", f"{PAGE}/"):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, PAGE)


async def test_a_browser_gets_a_page_where_nothing_is(stranger: httpx.AsyncClient) -> None:
    """Programs get JSON."""
    page = await stranger.get(f"{PAGE}/nope", headers={"accept": "text/html,*/*"})

    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "no such path" in page.text
