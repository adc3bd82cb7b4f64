"""Requests of WSGI applications, of Flask and of Django: what fails in them is recorded once, with its request."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import setup_testing_defaults

import django  # type: ignore[import-untyped]
import httpx
import pytest
from django.conf import settings as django_settings  # type: ignore[import-untyped]
from django.core.exceptions import PermissionDenied  # type: ignore[import-untyped]
from django.core.handlers.asgi import ASGIHandler  # type: ignore[import-untyped]
from django.core.handlers.wsgi import WSGIHandler  # type: ignore[import-untyped]
from django.http import Http404, HttpResponse, StreamingHttpResponse  # type: ignore[import-untyped]
from django.urls import include, path  # type: ignore[import-untyped]
from flask import Blueprint, Flask, Response, abort

import tocsin
from tests.instrumentation.conftest import Watched
from tocsin import requests
from tocsin.instrumentation.context import current_scope

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
App = Callable[..., Iterable[bytes]]


def ask(app: App, path: str = "/", **environ: str) -> tuple[int, bytes, dict[str, str]]:
    """What a server of the standard library answers: status, body, headers."""
    asked: dict[str, Any] = {}
    setup_testing_defaults(asked)
    asked |= {"PATH_INFO": path.partition("?")[0], "QUERY_STRING": path.partition("?")[2], "REMOTE_ADDR": "192.0.2.7"}
    out = io.BytesIO()
    SimpleHandler(io.BytesIO(), out, io.StringIO(), asked | environ).run(app)
    head, _, body = out.getvalue().partition(b"\r\n\r\n")
    first, *lines = head.decode().splitlines()
    return int(first.split()[1]), body, dict(line.split(": ", 1) for line in lines)


def status_of(app: App, path: str = "/", **environ: str) -> int:
    return ask(app, path, **environ)[0]


def boom(environ: Any, start_response: Any) -> Iterable[bytes]:
    raise LookupError("lost")


class Body:
    """A body that fails at one of its steps."""

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.chunks = iter([b"a", b"b"])

    def __iter__(self) -> Iterator[bytes]:
        if self.fails == "iter":
            raise LookupError("lost")
        return self

    def __next__(self) -> bytes:
        chunk = next(self.chunks)
        if self.fails == "next" and chunk == b"b":
            raise LookupError("lost")
        return chunk

    def close(self) -> None:
        if self.fails == "close":
            raise LookupError("lost")


def test_an_exception_is_told_with_its_request_and_without_its_secrets(watched: Watched) -> None:
    status = status_of(
        boom,
        "/orders/ä7?token=geheim77&page=2".encode().decode("latin-1"),
        HTTP_TRACEPARENT=f"00-{TRACE}-00f067aa0ba902b7-01",
        HTTP_USER_AGENT="curl/8",
        HTTP_COOKIE="s=geheim77",
        HTTP_X_REQUEST_ID="r-1",
        CONTENT_TYPE="text/plain",
    )

    row = watched.row()
    assert status == 500
    assert (row.exception_type, row.mechanism, row.handled, row.severity) == ("LookupError", "wsgi", False, "high")
    assert (row.trace_id, row.span_id) == (TRACE, "00f067aa0ba902b7")
    context = row.context
    assert (context["http.request.method"], context["url.path"]) == ("GET", "/orders/ä7")
    assert "page=2" in context["url.query"]
    assert (context["user_agent.original"], context["client.address"]) == ("curl/8", "192.0.2.7")
    assert context["http.request.header.x-request-id"] == "r-1"
    assert context["http.request.header.content-type"] == "text/plain"
    assert context["http.response.status_code"] == 500
    assert "geheim77" not in str(context)


@pytest.mark.parametrize("fails", ["iter", "next", "close"])
def test_a_body_that_fails_is_one_error_of_its_request(fails: str, watched: Watched) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Body(fails)

    with suppress(TypeError):  # the standard library's server stumbles over what fails in `close`
        ask(app, "/stream", HTTP_TRACEPARENT=f"00-{TRACE}-00f067aa0ba902b7-01")

    row = watched.row()
    assert (row.exception_type, row.mechanism, row.handled, row.trace_id) == ("LookupError", "wsgi", False, TRACE)
    assert row.context["url.path"] == "/stream"


def test_a_line_logged_while_the_body_is_made_belongs_to_the_request(watched: Watched) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"a"
        logging.getLogger("shop").error("short of %s", "tea")

    assert ask(app, "/stream")[1] == b"a"

    row = watched.row()
    assert (row.message, row.context["url.path"]) == ("short of tea", "/stream")


def test_a_failure_that_an_application_answers_itself_is_told_by_the_server_s_function(watched: Watched) -> None:
    """PEP 3333: it hands the exception to ``start_response``."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        try:
            raise LookupError("lost")
        except LookupError:
            start_response("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"sorry"]

    assert ask(app)[:2] == (500, b"sorry")
    assert watched.row().exception_type == "LookupError"


@pytest.mark.parametrize("body", [[b"no"], iter([b"no"])], ids=["made", "in the making"])
def test_a_5xx_without_an_exception_is_one_error_and_a_4xx_is_none(body: Any, watched: Watched) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(f"{environ['PATH_INFO'][-3:]} Hm", [("Content-Type", "text/plain")])
        return body if environ["PATH_INFO"].startswith("/7/") else [b""]

    assert [status_of(app, f"/{path}") for path in ("8/404", "7/503", "8/200")] == [404, 503, 200]

    row = watched.row()
    assert row.exception_type is None
    assert (row.message, row.severity, row.mechanism) == ("GET /* answered 503", "high", "wsgi")


def test_layers_upon_layers_record_once(watched: Watched) -> None:
    """A middleware hands on a copy of the environ, and puts its own prefix before the path."""
    shop = flask_shop()

    def outer(environ: Any, start_response: Any) -> Iterable[bytes]:
        return shop(dict(environ, SCRIPT_NAME="/sub"), start_response)

    assert status_of(outer, "/orders/7", HTTP_TRACEPARENT=f"00-{TRACE}-00f067aa0ba902b7-01") == 500

    row = watched.row()
    assert (row.exception_type, row.count, row.trace_id) == ("LookupError", 1, TRACE)
    assert (row.context["url.path"], row.context["http.route"]) == ("/sub/orders/7", "/orders/<int:number>")


def test_requests_of_one_thread_share_nothing(watched: Watched) -> None:
    """Also where a server forgets to close a body."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"a"
        raise LookupError("lost")

    class Server(SimpleHandler):
        result: Any

        def finish_response(self) -> None:
            next(iter(self.result))
            self.result = None

    for number in range(2):
        asked: dict[str, Any] = {}
        setup_testing_defaults(asked)
        Server(io.BytesIO(), io.BytesIO(), io.StringIO(), asked | {"PATH_INFO": f"/{number}"}).run(app)
        assert current_scope.get() is None
    gc.collect()
    assert requests.active() == 0
    ask(app, "/last")

    row = watched.row()
    assert row.context["url.path"] == "/last"


def test_what_the_server_sends_by_itself_stays_as_it_is(watched: Watched) -> None:
    """A file goes out by ``sendfile`` where the server sees what it is, and a length where it is known."""
    seen = []

    class Server(SimpleHandler):
        result: Any

        def finish_response(self) -> None:
            seen.append((self.result_is_file(), type(self.result)))
            super().finish_response()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"x")) if environ["PATH_INFO"] == "/file" else [b"abc"]

    asked: dict[str, Any] = {}
    setup_testing_defaults(asked)
    for place in ("/file", "/list"):
        Server(io.BytesIO(), io.BytesIO(), io.StringIO(), asked | {"PATH_INFO": place}).run(app)

    assert [is_file for is_file, _ in seen] == [True, False]
    assert seen[1][1] is list


def test_requests_are_counted_while_they_are_answered_and_refused_in_a_stop(watched: Watched) -> None:
    counts = []

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        counts.append(requests.active())
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/boom":
            raise LookupError("lost")
        return iter([b""])

    assert [status_of(app), status_of(app, "/boom")] == [200, 500]
    requests.stop()
    try:
        status, _, headers = ask(app)
    finally:
        requests.begin_anew()

    assert counts == [1, 1]
    assert requests.active() == 0
    assert (status, headers["Retry-After"]) == (503, "5")
    assert watched.row().message == "lost"


def test_without_tocsin_the_application_is_called_as_it_is(unwatched: Watched) -> None:
    shop = flask_shop()
    plain = vars(Flask)["__call__"]
    unwatched.init()
    assert vars(Flask)["__call__"] is not plain

    tocsin.shutdown()

    assert vars(Flask)["__call__"] is plain
    assert status_of(shop, "/orders/7") == 500
    assert unwatched.rows() == []


# Flask


class Refused(Exception):
    pass


class Missing(Exception):
    pass


def flask_shop() -> Flask:
    app = Flask("shop")
    orders = Blueprint("orders", "shop", url_prefix="/orders")

    @orders.get("/<int:number>")
    def order(number: int) -> str:
        raise LookupError("lost")

    @app.get("/logged")
    def logged() -> str:
        try:
            raise LookupError("lost")
        except LookupError:
            app.logger.exception("no order")
        return "ok"

    @app.get("/abort/<int:status>")
    def aborted(status: int) -> str:
        abort(status)

    @app.get("/refused")
    def refused() -> str:
        raise Refused("by the bank")

    @app.get("/missing")
    def missing() -> str:
        raise Missing("no such thing")

    @app.get("/stream")
    def stream() -> Response:
        def rows() -> Iterator[str]:
            yield "a"
            raise LookupError("lost")

        return Response(rows())

    @app.errorhandler(Refused)
    def answer(error: Refused) -> tuple[str, int]:
        return "sorry", 502

    @app.errorhandler(Missing)
    def answer_404(error: Missing) -> tuple[dict[str, str], int]:
        return {"error": "missing"}, 404

    app.register_blueprint(orders)
    return app


@pytest.mark.parametrize(
    ("path", "answered", "told"),
    [
        ("/orders/7", 500, ("LookupError", "wsgi", False, "high", "/orders/<int:number>")),
        ("/logged", 200, ("LookupError", "logging", True, "high", "/logged")),
        ("/abort/503", 503, ("werkzeug.exceptions.ServiceUnavailable", "wsgi", True, "high", "/abort/<int:status>")),
        ("/refused", 502, (f"{__name__}.Refused", "wsgi", True, "high", "/refused")),
        ("/stream", 200, ("LookupError", "wsgi", False, "high", "/stream")),
    ],
)
def test_flask_s_failures_are_one_error_each(path: str, answered: int, told: tuple[Any, ...], watched: Watched) -> None:
    """Though Flask logs them, and turns them into an answer before they leave it."""
    assert status_of(flask_shop(), path) == answered

    row = watched.row()
    assert (row.exception_type, row.mechanism, row.handled, row.severity, row.context["http.route"]) == told
    assert row.count == 1


def test_what_flask_answers_below_500_is_expected(watched: Watched) -> None:
    app = flask_shop()

    assert [status_of(app, path) for path in ("/abort/404", "/missing", "/nowhere")] == [404, 404, 404]
    assert watched.rows() == []


def test_what_flask_answers_below_500_is_stored_where_that_is_set(unwatched: Watched) -> None:
    unwatched.init(capture_4xx=True)

    status_of(flask_shop(), "/missing")

    row = unwatched.row()
    assert (row.exception_type, row.severity) == (f"{__name__}.Missing", "medium")


def test_flask_s_debugger_and_its_tests_get_the_exception(watched: Watched) -> None:
    app = flask_shop()
    app.testing = True

    with pytest.raises(LookupError) as raised:
        app.test_client().get("/orders/7")

    assert "tocsin" not in {frame.name for frame in raised.traceback}
    assert watched.row().context["http.route"] == "/orders/<int:number>"


# Django


class Answering:
    """A middleware that has an answer to some exceptions."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    def process_exception(self, request: Any, exception: BaseException) -> HttpResponse | None:
        if isinstance(exception, Refused):
            return HttpResponse("sorry", status=502)
        return HttpResponse("none", status=404) if isinstance(exception, Missing) else None


def order(request: Any, number: int) -> HttpResponse:
    raise LookupError("lost")


async def order_async(request: Any, number: int) -> HttpResponse:
    raise LookupError("lost")


def answer(request: Any, kind: str) -> HttpResponse:
    raising = {"refused": Refused("by the bank"), "missing": Missing(), "none": Http404(), "denied": PermissionDenied()}
    if kind in raising:
        raise raising[kind]
    return HttpResponse("no", status=int(kind))


def stream(request: Any) -> StreamingHttpResponse:
    def rows() -> Iterator[str]:
        yield "a"
        raise LookupError("lost")

    return StreamingHttpResponse(rows())


def logged(request: Any) -> HttpResponse:
    try:
        raise LookupError("lost")
    except LookupError:
        logging.getLogger("django.request").exception("no order")
    return HttpResponse("ok")


@pytest.fixture(scope="session")
def urls() -> ModuleType:
    """Django is set up once in a process."""
    module = ModuleType("tocsin_test_urls")
    orders = [path("<int:number>/", order), path("async/<int:number>/", order_async)]
    module.urlpatterns = [  # type: ignore[attr-defined]
        path("orders/", include(orders)),
        path("answer/<str:kind>/", answer),
        path("stream/", stream),
        path("logged/", logged),
    ]
    sys.modules[module.__name__] = module
    django_settings.configure(
        ROOT_URLCONF=module.__name__,
        ALLOWED_HOSTS=["127.0.0.1", "shop"],
        MIDDLEWARE=["django.middleware.common.CommonMiddleware", f"{__name__}.Answering"],
        SECRET_KEY="x",
        LOGGING_CONFIG=None,
    )
    django.setup()
    return module


@pytest.fixture(params=["wsgi", "asgi"])
def django_status(request: pytest.FixtureRequest, urls: ModuleType) -> Callable[[str], int]:
    """Asks Django by each of its sides."""
    if request.param == "wsgi":
        return lambda path: status_of(WSGIHandler(), path)

    async def ask_async(path: str) -> int:
        transport = httpx.ASGITransport(ASGIHandler(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return (await client.get(path)).status_code

    def ask_in_thread(path: str) -> int:
        with asyncio.Runner() as runner:
            return runner.run(ask_async(path))

    return ask_in_thread


@pytest.mark.parametrize(
    ("path", "answered", "told"),
    [
        ("/orders/7/", 500, ("LookupError", False, "high", "orders/<int:number>/")),
        ("/orders/async/7/", 500, ("LookupError", False, "high", "orders/async/<int:number>/")),
        ("/answer/refused/", 502, (f"{__name__}.Refused", True, "high", "answer/<str:kind>/")),
        ("/answer/503/", 503, (None, False, "high", "answer/<str:kind>/")),
        ("/logged/", 200, ("LookupError", True, "high", "logged/")),
    ],
)
def test_django_s_failures_are_one_error_each(
    path: str, answered: int, told: tuple[Any, ...], django_status: Callable[[str], int], watched: Watched
) -> None:
    """Though Django logs them, and turns them into an answer before they leave it; by WSGI and by ASGI."""
    assert django_status(path) == answered

    row = watched.row()
    assert (row.exception_type, row.handled, row.severity, row.context["http.route"]) == told
    assert row.count == 1
    assert row.context["url.path"] == path


def test_django_s_stream_that_fails_is_one_error(urls: ModuleType, watched: Watched) -> None:
    status_of(WSGIHandler(), "/stream/")

    assert watched.row().context["http.route"] == "stream/"


def test_what_django_answers_below_500_is_expected(django_status: Callable[[str], int], watched: Watched) -> None:
    paths = ("/answer/none/", "/answer/denied/", "/answer/missing/", "/nowhere/", "/answer/418/")

    assert [django_status(path) for path in paths] == [404, 403, 404, 404, 418]
    assert watched.rows() == []


def test_a_host_that_django_does_not_know_is_no_error(urls: ModuleType, watched: Watched) -> None:
    """Django logs it as one, with every robot that comes by."""
    assert status_of(WSGIHandler(), "/answer/200/", HTTP_HOST="evil.example") == 400
    assert watched.rows() == []


def test_what_django_answers_below_500_is_stored_where_that_is_set(urls: ModuleType, unwatched: Watched) -> None:
    unwatched.init(capture_4xx=True)

    status_of(WSGIHandler(), "/answer/denied/")

    row = unwatched.row()
    assert (row.exception_type, row.severity) == ("django.core.exceptions.PermissionDenied", "medium")


def test_a_thread_that_a_request_starts_belongs_to_it(watched: Watched) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        thread = threading.Thread(target=logging.getLogger("shop").error, args=("late",))
        thread.start()
        thread.join()
        start_response("200 OK", [])
        return []

    ask(app, "/thread")

    assert watched.row().context["url.path"] == "/thread"
