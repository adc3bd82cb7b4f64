"""`tocsin.context`: facts join the errors raised inside, wherever they are recorded, and no others."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

import tocsin
from tests.instrumentation.conftest import Watched
from tocsin.instrumentation.context import route_of, trace_of


def track() -> None:
    tocsin.track_error(ValueError("inside"))


def test_facts_join_what_is_raised_inside_and_nothing_else(watched: Watched) -> None:
    with tocsin.context(user_id="u7"):
        track()
    track()

    inside, outside = watched.rows()
    assert inside.context["user_id"] == "u7"
    assert "user_id" not in outside.context


def test_facts_of_an_inner_block_win(watched: Watched) -> None:
    with tocsin.context(user_id="outer", sync_id="s"), tocsin.context(user_id="inner"):
        track()

    assert watched.row().context["user_id"] == "inner"
    assert watched.row().context["sync_id"] == "s"


def test_facts_travel_with_an_exception_that_is_recorded_later(watched: Watched) -> None:
    """The place that knows most is inside; the place that records is far outside."""
    try:
        with tocsin.context(user_id="outer"), tocsin.context(user_id="inner", lead_id="7"):
            raise ValueError("no")
    except ValueError as exc:
        tocsin.track_error(exc)

    assert watched.row().context["user_id"] == "inner"
    assert watched.row().context["lead_id"] == "7"


def test_facts_go_into_threads_and_pools(watched: Watched) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # its thread is there already
        with tocsin.context(user_id="u7"):
            thread = threading.Thread(target=track)
            thread.start()
            thread.join()
            pool.submit(track).result()
        pool.submit(track).result()

    assert [row.context.get("user_id") for row in watched.rows()] == ["u7", "u7", None]


def test_a_job_from_elsewhere_does_not_inherit_what_a_worker_was_started_in(watched: Watched) -> None:
    """A pool starts its threads with the first jobs, and keeps them for those of others."""
    with ThreadPoolExecutor(1) as pool:
        with tocsin.context(user_id="u7"):
            pool.submit(track).result()
        pool.submit(track).result()

    assert [row.context.get("user_id") for row in watched.rows()] == ["u7", None]


async def test_facts_go_into_tasks(watched: Watched) -> None:
    async def work() -> None:
        track()

    async with tocsin.context(user_id="u7"):
        await asyncio.create_task(work())
        await asyncio.to_thread(track)

    assert [row.context.get("user_id") for row in watched.rows()] == ["u7", "u7"]


def test_a_generator_that_is_closed_elsewhere_hurts_nobody(watched: Watched) -> None:
    """Its block is left in another context than it was entered in, where its facts stay."""

    def work() -> Generator[int]:
        with tocsin.context(user_id="u7"):
            yield 1

    def leave_open() -> None:
        generator = work()
        next(generator)
        contextvars.Context().run(generator.close)
        track()

    contextvars.copy_context().run(leave_open)  # or the next test would have them

    assert len(watched.rows()) == 1


async def test_concurrent_requests_do_not_share_facts(watched: Watched) -> None:
    """Fifty at once; each error has the facts and the trace of its own request."""

    async def work(request: Request) -> None:
        number = request.path_params["number"]
        with tocsin.context(number=number):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise type(f"Error{number}", (Exception,), {})(number)

    app = Starlette(routes=[Route("/{number}", work)])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await asyncio.gather(
            *(client.get(f"/{n}", headers={"traceparent": f"00-{n:032x}-{n:016x}-01"}) for n in range(1, 51))
        )

    rows = await asyncio.to_thread(watched.rows)
    assert len(rows) == 50
    for row in rows:
        assert row.context["number"] == row.message
        assert row.context["url.path"] == f"/{row.message}"
        assert int(row.trace_id, 16) == int(row.message)


class Path:
    """A route as frameworks of Starlette's family leave it."""

    def __init__(self, path: str) -> None:
        self.path_format = path


class Mounted(Path):
    routes: tuple[()] = ()


@pytest.mark.parametrize(
    ("scope", "route"),
    [
        ({}, None),
        ({"route": object()}, None),
        ({"route": Path("/a/{x}"), "path_params": {"x": "1"}}, "/a/{x}"),
        ({"route": Path("/a"), "root_path": "/sub", "app_root_path": ""}, "/sub/a"),
        ({"route": Path("/a"), "root_path": "/proxy/sub", "app_root_path": "/proxy"}, "/sub/a"),
        ({"route": Path("/a"), "root_path": "/t/42", "path_params": {"t": "42"}}, "/t/{t}/a"),
        ({"route": Path("/a/{x}"), "root_path": "/t/1", "path_params": {"t": "1", "x": "1"}}, "/t/{t}/a/{x}"),
        ({"route": Mounted("/sub/{path}"), "root_path": "/sub"}, "/sub"),
    ],
)
def test_the_route_is_a_template(scope: dict[str, object], route: str | None) -> None:
    assert route_of(scope) == route


@pytest.mark.parametrize(
    "header",
    [
        *(
            b"",
            b"00",
            b"00-xyz-1-01",
            b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
            b"00-" + b"g" * 32 + b"-" + b"a" * 16,
        ),
        *(b"\xff" * 100, b"00-" + b"a" * 32 + b"-" + b"0" * 16 + b"-01"),
    ],
)
def test_a_trace_header_that_is_none_gives_a_trace_of_our_own(header: bytes) -> None:
    scope = {"headers": [(b"traceparent", header)]}

    trace_id, span_id = trace_of(scope)

    assert span_id is None
    assert trace_id is not None
    assert int(trace_id, 16) > 0
    assert trace_of(scope) == (trace_id, None)
