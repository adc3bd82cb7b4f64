"""What holds for every answer."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette

from tests.api.conftest import TOKENS, Put, client_of, settings_with
from tocsin.api import create_app
from tocsin.store import Store

API = "/api/debug/errors"


async def test_strict_headers_are_on_every_answer(client: httpx.AsyncClient, app: Starlette, put: Put) -> None:
    """On those of all calls, and on refusals."""
    entry = await put()
    paths = [call.path.replace("{id}", entry.id).replace("{n}", "1") for call in app.state.calls]
    for path in (*paths, "/nope", "/api/debug/groups/99", f"{API}?limit=x"):
        for method in ("GET", "DELETE"):
            headers = (await client.request(method, path)).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert headers["cross-origin-opener-policy"] == "same-origin"
            is_file = "/static/" in path and method == "GET"
            assert headers["cache-control"] == ("public, max-age=604800" if is_file else "no-store")
            assert "server" not in headers
            assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("errors.example.com", 200),
        ("errors.example.com:8443", 200),
        ("ERRORS.example.com", 200),
        ("a.intern.example.com", 200),
        ("public.example.com", 200),
        ("evil.test", 400),
        ("errors.example.com.evil.test", 400),
        ("xintern.example.com", 400),
        ("", 400),
        ("[", 400),
    ],
)
async def test_only_named_hosts_are_served(store: Store, host: str, status: int) -> None:
    """The public address is one of them; load balancers may ask by address."""
    settings = settings_with(
        allowed_hosts=("errors.example.com", "*.intern.example.com"), public_url="https://public.example.com"
    )
    async with client_of(create_app(settings, store=store), token=TOKENS["full"]) as client:
        assert (await client.get(API, headers={"host": host})).status_code == status
        assert (await client.get("/livez", headers={"host": host})).status_code == 200


async def test_other_origins_are_not_allowed_unless_named(client: httpx.AsyncClient) -> None:
    headers = {"origin": "https://dash.example.com", "access-control-request-method": "GET"}

    asked = await client.options(API, headers=headers)

    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://dash.example.com", "https://dash.example.com"),
        ("https://dash.example.com.evil.test", None),
        ("http://dash.example.com", None),
        ("null", None),
    ],
)
async def test_a_named_origin_may_call_with_a_token(store: Store, origin: str, allowed: str | None) -> None:
    """Never with cookies."""
    settings = settings_with(cors_origins=("https://dash.example.com",))
    async with client_of(create_app(settings, store=store), token=TOKENS["full"]) as client:
        asked = await client.options(API, headers={"origin": origin, "access-control-request-method": "GET"})
        answered = await client.get(API, headers={"origin": origin})

    assert asked.status_code == (204 if allowed else 405)
    assert answered.status_code == 200
    for answer in (asked, answered):
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert "origin" in answer.headers["vary"].lower()
        assert "access-control-allow-credentials" not in answer.headers


async def test_all_origins_are_allowed_without_credentials(store: Store) -> None:
    async with client_of(create_app(settings_with(cors_origins=("*",)), store=store), token=TOKENS["full"]) as client:
        answer = await client.get(API, headers={"origin": "https://any.test"})

    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
