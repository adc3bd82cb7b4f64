"""Requests: what fails in them is recorded once, what does not fail is let alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import tocsin
from tests.instrumentation.conftest import Watched
from tocsin import requests


async def boom(request: Request) -> Response:
    raise LookupError("lost")


async def get(app: Any, path: str = "/boom/1", **headers: str) -> int:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        return (await client.get(path, headers=headers)).status_code


async def rows_of(watched: Watched) -> list[Any]:
    return await asyncio.to_thread(watched.rows)


async def row_of(watched: Watched) -> Any:
    return await asyncio.to_thread(watched.row)


async def pass_through(request: Request, call_next: Callable[[Request], Any]) -> Any:
    return await call_next(request)


class Copying:
    """A middleware that hands on a copy of the scope."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)


ROUTES = [Route("/boom/{x}", boom)]


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: Starlette(routes=ROUTES), "/boom/1"),
        (lambda: tocsin.TocsinMiddleware(Starlette(routes=ROUTES)), "/boom/1"),
        (lambda: Starlette(routes=ROUTES, middleware=[Middleware(tocsin.TocsinMiddleware)]), "/boom/1"),
        (lambda: Starlette(routes=ROUTES, middleware=[Middleware(BaseHTTPMiddleware, pass_through)]), "/boom/1"),
        (lambda: Starlette(routes=ROUTES, middleware=[Middleware(Copying)]), "/boom/1"),
        (lambda: Starlette(routes=[Mount("/sub", Starlette(routes=ROUTES))]), "/sub/boom/1"),
        (lambda: Starlette(routes=[Mount("/sub", Copying(Starlette(routes=ROUTES)))]), "/sub/boom/1"),
        (lambda: Starlette(routes=[Mount("/sub", Starlette(routes=[Mount("/in", routes=ROUTES)]))]), "/sub/in/boom/1"),
    ],
    ids=["plain", "wrapped", "added", "base", "copying", "mounted", "mounted copy", "twice mounted"],
)
async def test_layers_upon_layers_record_once(make: Callable[[], Any], path: str, watched: Watched) -> None:
    assert await get(make(), path) == 500

    row = await row_of(watched)
    assert (row.exception_type, row.handled, row.severity, row.count) == ("LookupError", False, "high", 1)


async def test_a_request_is_told_without_its_secrets(watched: Watched) -> None:
    app = Starlette(routes=ROUTES)

    await get(
        app, "/boom/1?token=geheim77&page=2", **{"User-Agent": "curl/8", "Cookie": "s=geheim77", "X-Request-Id": "r-1"}
    )

    context = (await row_of(watched)).context
    assert context["http.request.method"] == "GET"
    assert context["url.path"] == "/boom/1"
    assert "page=2" in context["url.query"]
    assert context["user_agent.original"] == "curl/8"
    assert context["http.request.header.x-request-id"] == "r-1"
    assert context["client.address"] == "127.0.0.1"
    assert context["http.response.status_code"] == 500
    assert "geheim77" not in str(context)


async def test_answers_below_500_are_no_errors(watched: Watched) -> None:
    async def answer(request: Request) -> Response:
        raise HTTPException(int(request.path_params["status"]))

    app = Starlette(routes=[Route("/{status}", answer)])

    assert [await get(app, f"/{status}") for status in (404, 401, 422)] == [404, 401, 422]
    assert await rows_of(watched) == []


async def test_4xx_are_stored_where_that_is_set(unwatched: Watched) -> None:
    unwatched.init(capture_4xx=True)

    async def answer(request: Request) -> Response:
        raise HTTPException(404)

    await get(Starlette(routes=[Route("/{x}", answer)]), "/x")

    assert (await row_of(unwatched)).severity == "medium"


async def test_a_handler_that_answers_5xx_hides_nothing(watched: Watched) -> None:
    """An exception that a handler turns into an answer is still the error, and was handled."""

    async def answer(request: Request, exc: Exception) -> Response:
        return JSONResponse({}, 502)

    def answer_404(request: Request, exc: Exception) -> Response:
        return JSONResponse({}, 404)

    async def missing(request: Request) -> Response:
        raise KeyError("phone")

    handlers: Any = {LookupError: answer, KeyError: answer_404}
    app = Starlette(routes=[*ROUTES, Route("/missing", missing)], exception_handlers=handlers)

    assert await get(app) == 502
    assert await get(app, "/missing") == 404
    row = await row_of(watched)
    assert (row.exception_type, row.handled, row.severity) == ("LookupError", True, "high")
    assert row.context["http.response.status_code"] == 502


async def test_a_plain_5xx_answer_is_an_error_by_route(watched: Watched) -> None:
    async def plain(request: Request) -> Response:
        return PlainTextResponse("", 503)

    app = Starlette(routes=[Route("/plain/{x}", plain)])
    for number in range(3):
        await get(app, f"/plain/{number}")

    rows = await rows_of(watched)
    assert {row.message for row in rows} == {"GET /plain/{x} answered 503"}
    assert len({row.group_id for row in rows}) == 1


async def test_a_5xx_answer_without_a_route_is_one_group_and_tells_no_secret(watched: Watched) -> None:
    """An application of no framework: its paths hold ids, and tokens that no disk shall see."""
    token = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for path in [*(f"/users/{number}/orders" for number in range(3)), f"/pay/{token}/now"]:
        await get(tocsin.TocsinMiddleware(app), path)

    rows = await rows_of(watched)
    assert [row.message for row in rows[:3]] == ["GET /users/*/orders answered 503"] * 3
    assert len({row.group_id for row in rows}) == 2
    assert token not in str([vars(row) for row in rows])
    for file in watched.folder.rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes(), file


async def test_a_5xx_answer_is_an_error_beside_a_lesser_one(watched: Watched) -> None:
    """What the program holds for low does not say that the request failed."""

    async def answer(request: Request) -> Response:
        tocsin.track_error(LookupError("cache is slow"), "low")
        if "x" in request.query_params:
            tocsin.track_error(LookupError("lost"), "high")
        return PlainTextResponse("", 503)

    app = Starlette(routes=[Route("/boom/{x}", answer)])
    await get(app)
    await get(app, "/boom/1?x=1")

    rows = await rows_of(watched)
    assert [(row.message, row.severity, row.handled) for row in rows] == [
        ("cache is slow", "low", True),
        ("GET /boom/{x} answered 503", "high", False),
        ("cache is slow", "low", True),
        ("lost", "high", True),
    ]


async def test_a_lesser_error_that_a_handler_answers_with_5xx_is_the_request_s(watched: Watched) -> None:
    """It is seen again with what it led to, and needs no error beside it."""

    async def fail(request: Request) -> Response:
        try:
            raise LookupError("lost")
        except LookupError as exc:
            tocsin.track_error(exc, "low")
            raise

    async def answer(request: Request, exc: Exception) -> Response:
        return PlainTextResponse("", 503)

    await get(Starlette(routes=[Route("/boom/{x}", fail)], exception_handlers={LookupError: answer}))

    row = await row_of(watched)
    assert (row.exception_type, row.severity) == ("LookupError", "high")


async def test_a_logged_error_and_its_5xx_answer_are_one(watched: Watched) -> None:
    async def answer(request: Request) -> Response:
        try:
            raise LookupError("lost")
        except LookupError as exc:
            tocsin.track_error(exc)
            return PlainTextResponse("", 500)

    await get(Starlette(routes=[Route("/boom/{x}", answer)]))

    assert (await row_of(watched)).exception_type == "LookupError"


async def _fail() -> None:
    raise LookupError("lost")


async def _broken_chunks() -> Any:
    yield b"x"
    raise LookupError("lost")


@pytest.mark.parametrize(
    "answer",
    [
        lambda: JSONResponse({}, status_code=400, background=BackgroundTask(_fail)),
        lambda: StreamingResponse(_broken_chunks(), status_code=404),
    ],
    ids=["background task", "stream"],
)
async def test_what_escapes_behind_a_4xx_answer_is_an_error(answer: Callable[[], Response], watched: Watched) -> None:
    """The answer was expected; what left the application after it was not."""

    async def respond(request: Request) -> Response:
        return answer()

    await get(Starlette(routes=[Route("/boom/{x}", respond)]))

    row = await row_of(watched)
    assert (row.exception_type, row.severity, row.category, row.handled) == ("LookupError", "high", "api", False)


async def test_a_stream_that_breaks_is_an_error(watched: Watched) -> None:
    async def chunks() -> Any:
        yield b"a"
        raise LookupError("lost")

    async def stream(request: Request) -> Response:
        return StreamingResponse(chunks())

    with pytest.raises(BaseException):
        await Starlette(routes=[Route("/", stream)])(SCOPE, receive, send)

    assert "lost" in (await row_of(watched)).stack


SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "root_path": ""}


async def receive() -> dict[str, Any]:
    """A client that sends nothing and stays."""
    await asyncio.Event().wait()
    raise AssertionError


async def send(message: Any) -> None: ...


@pytest.mark.parametrize("exc", [asyncio.CancelledError(), ClientDisconnect()])
async def test_a_client_that_went_away_is_no_error(exc: BaseException, watched: Watched) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise exc

    with pytest.raises(type(exc)):
        await tocsin.TocsinMiddleware(app)(dict(SCOPE), receive, send)

    assert await rows_of(watched) == []


async def test_an_exit_within_a_request_is_recorded(watched: Watched) -> None:
    """It ends the server; nobody would know why."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await tocsin.TocsinMiddleware(app)(dict(SCOPE), receive, send)

    assert (await row_of(watched)).exception_type == "SystemExit"


async def test_a_websocket_that_raises_is_an_error(watched: Watched) -> None:
    """One whose peer goes away is none."""

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive_text()
        raise LookupError("lost")

    async def connect(*messages: dict[str, Any]) -> None:
        waiting = [{"type": "websocket.connect"}, *messages]

        async def receive() -> dict[str, Any]:
            return waiting.pop(0)

        await app({**SCOPE, "type": "websocket", "path": "/talk/1", "subprotocols": []}, receive, send)

    app = Starlette(routes=[WebSocketRoute("/talk/{x}", talk)])
    with pytest.raises(LookupError):
        await connect({"type": "websocket.receive", "text": "hello"})
    with pytest.raises(WebSocketDisconnect):
        await connect({"type": "websocket.disconnect", "code": 1001})

    row = await row_of(watched)
    assert (row.exception_type, row.handled) == ("LookupError", False)
    assert row.context["http.route"] == "/talk/{x}"


async def test_dependencies_work_as_before(watched: Watched) -> None:
    """A protected FastAPI route keeps its signature, from which its parameters are read."""
    app = FastAPI()

    async def user() -> str:
        return "anna"

    @app.get("/orders/{number}")
    @tocsin.protect(category="orders")
    async def order(number: int, limit: int = 3, name: str = Depends(user)) -> dict[str, Any]:
        if number == 0:
            raise LookupError("lost")
        assert (number, limit, name) == (7, 9, "anna")
        return {}

    assert await get(app, "/orders/7?limit=9") == 200
    assert await get(app, "/orders/x") == 422
    assert await get(app, "/orders/0") == 500
    row = await row_of(watched)
    assert (row.category, row.handled, row.mechanism) == ("orders", False, "asgi")


async def test_an_application_s_own_exception_reaches_its_server(watched: Watched) -> None:
    with pytest.raises(LookupError, match="lost"):
        await Starlette(routes=ROUTES)({**SCOPE, "path": "/boom/1"}, receive, send)


async def test_a_request_is_under_way_until_it_is_answered(watched: Watched) -> None:
    """Once, however many layers it passes; a stream to its end, a websocket too, and one that fails."""
    seen: list[int] = []

    async def look(request: Request) -> Response:
        seen.append(requests.active())

        async def chunks() -> Any:
            seen.append(requests.active())
            yield b"x"

        return StreamingResponse(chunks())

    async def talk(socket: WebSocket) -> None:
        seen.append(requests.active())

    inner = Starlette(routes=[Route("/look", look), WebSocketRoute("/talk", talk), *ROUTES])
    app = tocsin.TocsinMiddleware(Copying(Starlette(routes=[Mount("/in", inner)])))

    assert await get(app, "/in/look") == 200
    assert await get(app, "/in/boom/1") == 500
    await app({**SCOPE, "type": "websocket", "path": "/in/talk", "subprotocols": []}, receive, send)

    assert seen == [1, 1, 1]
    assert requests.active() == 0


@pytest.fixture
def stopping() -> Iterator[None]:
    """A server that was asked to stop."""
    requests.stop()
    yield
    requests.begin_anew()


async def test_a_server_that_stops_takes_no_new_requests(watched: Watched, stopping: None) -> None:
    """Who asks is told to come again, and nothing of it is an error; only health says how it is."""
    app = Starlette(routes=[*ROUTES, Route("/tocsin/api/debug/health", lambda request: PlainTextResponse("ok"))])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        refused = await client.get("/boom/1")
        assert (await client.get("/tocsin/api/debug/health")).status_code == 200

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "5"
    assert refused.headers["connection"] == "close"
    assert refused.json()["success"] is False
    assert await rows_of(watched) == []


async def test_a_server_that_stops_takes_no_new_websockets(watched: Watched, stopping: None) -> None:
    """Closed with 1012, "service restart"; with a status and when to come again where the server can say so."""
    sent: list[dict[str, Any]] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    app = Starlette(routes=[])
    scope = {**SCOPE, "type": "websocket", "path": "/talk", "subprotocols": []}
    await app(dict(scope), receive, keep)
    await app({**scope, "extensions": {"websocket.http.response": {}}}, receive, keep)

    assert sent[0] == {"type": "websocket.close", "code": 1012}
    assert (sent[1]["type"], sent[1]["status"]) == ("websocket.http.response.start", 503)
    assert sent[2]["type"] == "websocket.http.response.body"


async def test_without_tocsin_the_layer_only_passes_on(unwatched: Watched) -> None:
    """Before `init`, and after `shutdown`."""
    app = tocsin.TocsinMiddleware(Starlette(routes=ROUTES))

    assert await get(app) == 500
