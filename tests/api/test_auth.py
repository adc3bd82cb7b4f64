"""Who gets in, how far, and who does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import Connection, select, update
from starlette.applications import Starlette

from tests.api.conftest import HOST, TOKENS, Put, client_of, settings_with
from tests.failed_jobs import failed_job
from tocsin import clock
from tocsin.api import create_app
from tocsin.api.auth import LOGIN, LOGOUT, first_token, login_address
from tocsin.api.calls import Right
from tocsin.model import Batch
from tocsin.settings import Settings
from tocsin.store import Store, errors, schema

PAGE = "/admin/debug"

# What each token may do, by the right that a call asks for.
MAY = {
    None: {Right.NONE},
    "ingest": {Right.NONE, Right.INGEST},
    "read": {Right.NONE, Right.READ},
    "full": set(Right),
}


@pytest.mark.parametrize("token", MAY)
async def test_every_call_asks_for_its_right(app: Starlette, put: Put, store: Store, token: str | None) -> None:
    """All routes of the application, each with every token: nothing is open by oversight."""
    entry = await put()
    await store.write(errors.write_batch, Batch(entries=[], facts=[failed_job()]), clock.now())
    async with client_of(app, token=TOKENS[token] if token else None) as client:
        for call in app.state.calls:
            path = call.path.replace("{id}", entry.id).replace("{n}", "1").replace("{name}", "nightly?every=1d")
            answer = await client.request(call.method, path, json={} if call.right is Right.INGEST else None)
            expected = {True: (200, 303), False: (401,) if token is None else (403,)}[call.right in MAY[token]]
            if call.path == "/api/debug/errors" and call.method == "POST":
                expected = (400, *expected)  # an error without a message
            if call.path in (LOGIN, LOGOUT) and call.method == "POST":
                expected = (303, 400)  # a form without fields
            assert answer.status_code in expected or (call.method == "POST" and answer.status_code == 409), (
                call.method,
                call.path,
            )


async def test_the_table_of_calls_is_all_that_there_is(app: Starlette) -> None:
    """No route stands beside it, and only these few are open."""
    routes = {(method, route.path) for route in app.routes for method in route.methods - {"HEAD"}}  # type: ignore[attr-defined]

    assert routes == {(call.method, call.path) for call in app.state.calls}
    open_paths = {call.path for call in app.state.calls if call.right is Right.NONE and "/static/" not in call.path}
    assert open_paths == {"/livez", "/readyz", "/", f"{PAGE}/", LOGIN, LOGOUT}
    sending = {call.path for call in app.state.calls if call.right is Right.INGEST}
    assert sending == {"/v1/logs", "/v1/traces", "/v1/metrics", "/api/debug/errors", "/api/debug/beats/{name}"}
    posts = [call for call in app.state.calls if call.method == "POST" and call.path not in {LOGIN, LOGOUT, *sending}]
    assert {call.right for call in posts} == {Right.FULL}


async def test_who_is_not_known_is_told_how(stranger: httpx.AsyncClient) -> None:
    answer = await stranger.get("/api/debug/errors")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["success"] is False


@pytest.mark.parametrize(
    "header", ["Bearer wrong", "Bearer ", "Bearer", "Basic YTpi", "full-secret", "Bearer full-secret2"]
)
async def test_a_wrong_header_is_refused(stranger: httpx.AsyncClient, header: str) -> None:
    answer = await stranger.get("/api/debug/errors", headers={"authorization": header})

    assert answer.status_code == 401


async def test_a_token_in_an_address_is_no_token(stranger: httpx.AsyncClient) -> None:
    """Addresses end up in logs."""
    answer = await stranger.get("/api/debug/errors?token=full-secret&access_token=full-secret")

    assert answer.status_code == 401


async def test_without_tokens_in_the_settings_nothing_is_open(store: Store) -> None:
    """An empty token matches no setting that is not set."""
    async with client_of(create_app(Settings(), store=store)) as client:
        for headers in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer None"}):
            assert (await client.get("/api/debug/errors", headers=headers)).status_code == 401


async def test_a_server_makes_its_token_once(store: Store) -> None:
    """It works like one from the settings; where one is set none is made."""
    token = await first_token(store, Settings())
    again = await first_token(store, Settings())
    configured = await first_token(store, settings_with())

    assert token
    assert (again, configured) == (None, None)
    async with client_of(create_app(Settings(), store=store), token=token) as client:
        assert (await client.get("/api/debug/errors")).status_code == 200


async def test_many_wrong_tokens_must_wait(app: Starlette, store: Store) -> None:
    """What is right goes on, also from the same address: behind a proxy that is the whole team's."""
    made = await first_token(store, Settings())
    async with client_of(app) as client:
        answers = [
            await client.get("/api/debug/errors", headers={"authorization": f"Bearer guess{number}"})
            for number in range(30)
        ]
        right = [
            (await client.get("/api/debug/errors", headers={"authorization": f"Bearer {token}"})).status_code
            for token in (TOKENS["full"], made)
        ]
        logged_in = await client.post(LOGIN, data={"token": TOKENS["full"]})

    assert answers[0].status_code == 401
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) > 0
    assert right == [200, 200]
    assert logged_in.status_code == 303


@pytest.mark.parametrize("host", ["evil.test/elsewhere?", "tocsin.test/%00"])
async def test_a_refusal_names_the_path_that_was_asked_for(app: Starlette, store: Store, host: str) -> None:
    """Not what the Host header makes of it."""
    async with client_of(app, token="wrong") as client:
        page = await client.get(PAGE, headers={"host": host})

    (row,) = await store.read(audit_rows)
    assert row.detail == f"wrong credentials for {PAGE}"
    assert f'name="next" value="{PAGE}"' in page.text


async def test_a_program_with_an_old_token_locks_nobody_out(app: Starlette) -> None:
    """The same wrong token again is no guess, until it is too much of it."""
    async with client_of(app, token="old") as client:
        statuses = [(await client.get("/api/debug/errors")).status_code for _ in range(70)]

    assert statuses[:60] == [401] * 60
    assert statuses[-1] == 429


async def test_a_refusal_stands_in_the_audit_once(app: Starlette, store: Store) -> None:
    async with client_of(app, token="wrong") as client:
        for _ in range(3):
            await client.get("/api/debug/errors")

    rows = await store.read(audit_rows)
    assert [(row.action, row.allowed) for row in rows] == [("refused", False)]
    assert "10.0.0.9" in rows[0].actor
    assert "wrong" not in rows[0].actor


def audit_rows(connection: Connection) -> list[Any]:
    return list(connection.execute(select(schema.audit).order_by(schema.audit.c.id)))


# Log-in


@pytest.fixture
async def code(store: Store) -> str:
    address = await login_address(store, settings_with(), HOST)
    assert address.startswith(f"{HOST}{LOGIN}?code=")
    return parse_qs(urlsplit(address).query)["code"][0]


@pytest.fixture
async def browser(stranger: httpx.AsyncClient, code: str) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody who has logged in by a log-in address."""
    await stranger.post(LOGIN, data={"code": code})
    yield stranger


def form_token_in(page: str) -> str:
    return page.split('name="form_token" value="')[1].split('"', maxsplit=1)[0]


async def test_a_log_in_address_shows_a_button_and_the_button_logs_in(stranger: httpx.AsyncClient, code: str) -> None:
    """Whoever only opens the address, as scanners of links do, uses nothing up."""
    for _ in range(3):
        page = await stranger.get(f"{LOGIN}?code={code}")
        assert f'value="{code}"' in page.text
    assert (await stranger.get(PAGE)).status_code == 401

    answer = await stranger.post(LOGIN, data={"code": code})

    assert (answer.status_code, answer.headers["location"]) == (303, PAGE)
    assert (await stranger.get(PAGE)).status_code == 200


async def test_a_code_works_once(app: Starlette, browser: httpx.AsyncClient, code: str) -> None:
    async with client_of(app) as second:
        answer = await second.post(LOGIN, data={"code": code})

        assert answer.status_code == 401
        assert "code was used before" in answer.text
        assert (await second.get(PAGE)).status_code == 401


async def test_a_code_that_is_too_old_is_refused(stranger: httpx.AsyncClient, store: Store, code: str) -> None:
    await store.write(age, timedelta(minutes=11))

    assert (await stranger.post(LOGIN, data={"code": code})).status_code == 401


def age(connection: Connection, by: timedelta) -> None:
    """Let time pass for all credentials."""
    table = schema.credentials
    for row in connection.execute(select(table)).all():
        connection.execute(
            update(table)
            .where(table.c.id == row.id)
            .values(expires_at=row.expires_at and row.expires_at - by, last_used_at=row.last_used_at - by)
        )


async def test_the_cookie_is_for_the_browser_alone(stranger: httpx.AsyncClient, code: str) -> None:
    cookie = (await stranger.post(LOGIN, data={"code": code})).headers["set-cookie"]

    assert cookie.startswith("tocsin_session=")
    assert {"httponly", "samesite=lax", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert "secure" not in cookie.lower()


async def test_over_https_the_cookie_is_bound_to_it(app: Starlette, code: str) -> None:
    async with client_of(app, host="https://tocsin.test") as client:
        answer = await client.post(LOGIN, data={"code": code})

        assert answer.headers["set-cookie"].startswith("__Host-tocsin_session=")
        assert "; secure" in answer.headers["set-cookie"].lower()
        assert "strict-transport-security" in answer.headers
        assert (await client.get(PAGE)).status_code == 200


@pytest.mark.parametrize(("token", "status"), [("full", 303), ("read", 303), ("ingest", 403)])
async def test_a_token_logs_in_too(stranger: httpx.AsyncClient, token: str, status: int) -> None:
    """One that may only send errors sees nothing."""
    answer = await stranger.post(LOGIN, data={"token": TOKENS[token]})

    assert answer.status_code == status


async def test_a_wrong_token_in_the_form_gets_the_form_again(stranger: httpx.AsyncClient) -> None:
    answer = await stranger.post(LOGIN, data={"token": "<b>wrong</b>"})

    assert answer.status_code == 401
    assert "not known" in answer.text
    assert "<b>" not in answer.text


@pytest.mark.parametrize(
    ("target", "location"),
    [
        (f"{PAGE}/groups/1?error=x", f"{PAGE}/groups/1?error=x"),
        ("https://evil.test", PAGE),
        ("//evil.test", PAGE),
        (f"{PAGE}@evil.test", PAGE),
        (f"{PAGE}/\\evil.test", PAGE),
        ("/api/debug/errors", PAGE),
    ],
)
async def test_after_the_log_in_people_come_back_but_never_elsewhere(
    stranger: httpx.AsyncClient, target: str, location: str
) -> None:
    answer = await stranger.post(LOGIN, data={"token": TOKENS["full"], "next": target})

    assert answer.headers["location"] == location


async def test_a_page_asks_to_log_in_and_remembers_where_one_wanted_to_go(stranger: httpx.AsyncClient) -> None:
    answer = await stranger.get(f"{PAGE}/groups/7?error=x")

    assert answer.status_code == 401
    assert f'name="next" value="{PAGE}/groups/7?error=x"' in answer.text


async def test_each_log_in_has_an_id_of_its_own(browser: httpx.AsyncClient, app: Starlette, store: Store) -> None:
    """The session before it ends: nobody can plant one."""
    before = browser.cookies["tocsin_session"]

    await browser.post(LOGIN, data={"token": TOKENS["full"]})

    assert browser.cookies["tocsin_session"] != before
    async with client_of(app) as other:
        other.cookies.set("tocsin_session", before)
        assert (await other.get(PAGE)).status_code == 401


async def test_a_log_out_ends_the_session_on_the_server(browser: httpx.AsyncClient, app: Starlette) -> None:
    """A copy of the cookie is worth nothing afterwards."""
    kept = browser.cookies["tocsin_session"]
    token = form_token_in((await browser.get(PAGE)).text)

    answer = await browser.post(LOGOUT, data={"form_token": token})

    assert answer.status_code == 303
    async with client_of(app) as thief:
        thief.cookies.set("tocsin_session", kept)
        assert (await thief.get(PAGE)).status_code == 401


async def test_an_idle_session_ends(browser: httpx.AsyncClient, store: Store) -> None:
    await store.write(age, timedelta(hours=8, minutes=1))

    assert (await browser.get(PAGE)).status_code == 401


async def test_a_page_that_refreshes_itself_keeps_no_session_alive(browser: httpx.AsyncClient, store: Store) -> None:
    """Use does, the page's own look does not."""
    await store.write(age, timedelta(hours=5))
    await browser.get(PAGE, headers={"x-tocsin-refresh": "1"})
    await store.write(age, timedelta(hours=2))
    await browser.get(PAGE)
    await store.write(age, timedelta(hours=5))
    await browser.get(PAGE, headers={"x-tocsin-refresh": "1"})
    await store.write(age, timedelta(hours=4))

    assert (await browser.get(PAGE)).status_code == 401


async def test_a_form_needs_the_sessions_own_mark(browser: httpx.AsyncClient, put: Put) -> None:
    await put()
    token = form_token_in((await browser.get(f"{PAGE}/groups/1")).text)
    act = f"{PAGE}/groups/1/resolve"

    without = await browser.post(act)
    wrong = await browser.post(act, data={"form_token": "x" + token[1:]})
    right = await browser.post(act, data={"form_token": token})

    assert (without.status_code, wrong.status_code) == (403, 403)
    assert (right.status_code, right.headers["location"]) == (303, f"{PAGE}/groups/1")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 303),
        ({"origin": HOST}, 303),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"origin": "https://evil.test"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": HOST}, 403),
    ],
)
async def test_another_site_cannot_act(
    browser: httpx.AsyncClient, put: Put, headers: dict[str, str], status: int
) -> None:
    """Even if it had come by the form's mark; nor can it log anybody in."""
    await put()
    token = form_token_in((await browser.get(PAGE)).text)

    answer = await browser.post(f"{PAGE}/groups/1/resolve", data={"form_token": token}, headers=headers)
    login = await browser.post(LOGIN, data={"token": TOKENS["full"]}, headers=headers)

    assert (answer.status_code, login.status_code) == (status, status)


async def test_a_cookie_needs_the_mark_for_the_api_too(browser: httpx.AsyncClient, put: Put) -> None:
    await put()
    token = form_token_in((await browser.get(PAGE)).text)
    act = "/api/debug/groups/1/resolve"

    assert (await browser.post(act)).status_code == 403
    assert (await browser.post(act, content=b"{}", headers={"content-type": "text/plain"})).status_code == 403
    assert (await browser.post(act, headers={"x-tocsin-form": token})).status_code == 200


async def test_who_acted_on_the_page_is_named(browser: httpx.AsyncClient, put: Put, store: Store) -> None:
    await put()
    token = form_token_in((await browser.get(PAGE)).text)
    await browser.post(f"{PAGE}/groups/1/resolve", data={"form_token": token})

    acts = [(row.action, row.via) for row in await store.read(audit_rows)]

    assert acts == [("log-in", "page"), ("resolve", "page")]


async def test_who_may_only_read_sees_no_buttons(stranger: httpx.AsyncClient, put: Put) -> None:
    await put()
    await stranger.post(LOGIN, data={"token": TOKENS["read"]})

    page = await stranger.get(f"{PAGE}/groups/1")
    act = await stranger.post(f"{PAGE}/groups/1/resolve", data={"form_token": form_token_in(page.text)})

    assert "/groups/1/resolve" not in page.text
    assert act.status_code == 403


@pytest.mark.parametrize("path", [f"{PAGE}/groups/1/resolve", "/api/debug/groups/1/resolve"])
async def test_reading_changes_nothing(client: httpx.AsyncClient, put: Put, path: str) -> None:
    """GET and HEAD on what acts are refused."""
    await put()

    assert [(await client.request(method, path)).status_code for method in ("GET", "HEAD")] == [405, 405]
