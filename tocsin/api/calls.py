"""One table row for each call: its path, who may make it, what it takes and gives, and how it is answered."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.exc import DBAPIError, ProgrammingError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tocsin import requests
from tocsin.api.inputs import BODY_LIMIT
from tocsin.failures import BadInput, NotFound, SchemaMismatch, StoreAway, TableMissing
from tocsin.lifecycle import IllegalTransition
from tocsin.settings import Settings
from tocsin.store import Store, open_store, shapes
from tocsin.store.engine import sqlstate

if TYPE_CHECKING:
    from tocsin.exporter.door import Door

logger = logging.getLogger("tocsin.api")

_ANSWER_WITHIN_S = 20
_LINGER_S = 1.0


class Right(StrEnum):
    """What a call needs, or a caller has."""

    NONE = "none"  #     anybody
    INGEST = "ingest"  # may send errors, and nothing else
    READ = "read"
    FULL = "full"


class Alerts(Protocol):
    """What the API asks of the alerts that run beside it."""

    def state(self) -> dict[str, Any]: ...

    def wake(self) -> None: ...


@dataclass(slots=True)
class House:
    """What every call may need; one for each application."""

    settings: Settings
    opened: Store | None = None
    alerts: Alerts | None = None
    door: Door | None = None  #       takes errors in; only a server has one
    expects_alerts: bool = False  #  a server whose alerts are gone is degraded; an app without any is not
    is_shutting_down: bool = False
    started: float = field(default_factory=time.monotonic)
    probe: asyncio.Task[None] | None = None
    behind: set[asyncio.Task[Any]] = field(default_factory=set)  # work that goes on after an answer

    @property
    def is_stopping(self) -> bool:
        """Whether the server, or the application that this is mounted in, takes no new requests."""
        return self.is_shutting_down or requests.is_stopping

    @property
    def store(self) -> Store:
        """The store; within another application it is opened by the first call that needs it."""
        if self.opened is None:
            self.opened = open_store(self.settings.database_url)
        return self.opened

    async def finish(self, timeout_s: float) -> None:
        """Let the work behind the answers end, or end it: the store is closed next."""
        left = {*self.behind} | ({self.probe} if self.probe else set())
        if not left:
            return
        _, late = await asyncio.wait(left, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a call."""

    right: Right
    name: str  #                  as the audit names them: "token: full"
    via: str  #                   api or page
    session: str | None = None  # the secret in the cookie, if it was one

    def may(self, right: Right) -> bool:
        """Whether this caller has a right; what is not listed is denied."""
        return right in _IMPLIED[self.right]


def form_token(session: str) -> str:
    """What every form of a session carries; other sites cannot know it."""
    return hmac.new(session.encode(), b"tocsin form", hashlib.sha256).hexdigest()


_IMPLIED = {
    Right.NONE: frozenset({Right.NONE}),
    Right.INGEST: frozenset({Right.NONE, Right.INGEST}),
    Right.READ: frozenset({Right.NONE, Right.READ}),
    Right.FULL: frozenset(Right),
}

Handler = Callable[[Request, House], Awaitable[Response]]
Fail = Callable[[Request, int, str, Mapping[str, str]], Response]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One value that a call takes in its path or query."""

    name: str
    about: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One row of the table."""

    method: str
    path: str
    right: Right
    run: Handler
    about: str
    takes: tuple[Parameter, ...] = ()
    body: Mapping[str, Any] | None = None  #                     schema of a JSON body, which may be left out
    gives: Mapping[str, Any] = field(default_factory=dict)  #    properties of the JSON answer
    also: Mapping[int, str] = field(default_factory=dict)  #     further statuses, and when
    body_limit: int = BODY_LIMIT
    is_page: bool = False  #                                     answers in HTML, failures too
    fail: Fail | None = None  #                                  how it answers what went wrong, if in a way of its own


Authorize = Callable[[Request, House, Call], Awaitable[Caller | None]]


def routes_of(calls: Iterable[Call], house: House, authorize: Authorize, page_failure: Fail) -> list[Route]:
    """
    The routes of a table.

    A call gets no further than `authorize` unless its caller has the right that its row names, and
    whatever goes wrong behind it becomes an answer that tells nothing of the inside.
    """
    by_path: dict[str, dict[str, Call]] = {}
    for call in calls:
        by_path.setdefault(call.path, {})[call.method] = call
    return [
        Route(path, _endpoint(by_method, house, authorize, page_failure), methods=list(by_method))
        for path, by_method in by_path.items()
    ]


def _endpoint(
    by_method: Mapping[str, Call], house: House, authorize: Authorize, page_failure: Fail
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        call = by_method["GET" if request.method == "HEAD" else request.method]
        fail = call.fail or (page_failure if call.is_page else failure)
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                request.state.caller = await authorize(request, house, call)
                _refuse_large(request, call.body_limit)
                return await call.run(request, house)
        except Exception as problem:
            status, text, headers = _meaning(problem)
            answered = fail(request, status, text, headers)
            return Lingering(answered) if headers.get("connection") == "close" else answered

    return endpoint


class Lingering(Response):
    """
    The last answer on a connection on which its sender still sends: that is dropped for a moment.

    Closed at once, the system would reset the connection, and the sender may never see why.
    """

    def __init__(self, answered: Response) -> None:
        super().__init__(status_code=answered.status_code)
        self.raw_headers = answered.raw_headers
        self.body = answered.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _refuse_large(request: Request, limit: int) -> None:
    """Refuse a body that says itself that it is too long, whether or not the call would read it."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length[:18]) > limit:
        raise HTTPException(413, f"the body is longer than {limit} bytes", {"connection": "close"})


def _meaning(problem: Exception) -> tuple[int, str, Mapping[str, str]]:
    """The status and the text for what went wrong; what is not foreseen is logged, and not told."""
    match problem:
        case HTTPException():
            return problem.status_code, problem.detail, problem.headers or {}
        case BadInput():
            return 400, str(problem), {}
        case NotFound():
            return 404, str(problem), {}
        case IllegalTransition():
            return 409, str(problem), {}
        case DBAPIError() if (sqlstate(problem) or "").startswith("22"):
            return 400, "a value in this request cannot be used", {}
        case TableMissing():
            return 503, str(problem), {"retry-after": "10"}
        case StoreAway():
            return 503, "the database cannot be reached; try again later", {"retry-after": "2"}
        case SchemaMismatch() | ProgrammingError():
            logger.warning("the database has another schema: %s", type(problem).__name__)
            return 503, "the database is not prepared for this version: run `tocsin migrate`", {"retry-after": "10"}
        case TimeoutError():
            return 503, "this took too long; try again later", {"retry-after": "5"}
        case _:
            logger.error("a call failed", exc_info=problem)
            return 500, "this failed inside tocsin; its log says why", {}


def failure(request: Request, status: int, text: str, headers: Mapping[str, str]) -> Response:
    """The answer to what went wrong, as JSON."""
    return answer({"success": False, "error": text}, status, headers)


def answer(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; times in ISO 8601, UTC."""
    body = shapes.as_json(content).encode("utf-8", "backslashreplace")
    return Response(body, status, dict(headers or {}), media_type="application/json")


def go_on_behind(house: House, name: str, work: Awaitable[Any]) -> None:
    """Let work go on after the answer; held, so that it is not lost, and its failure is logged."""

    async def run() -> None:
        try:
            await work
        except Exception:
            logger.warning("%s did not end; it goes on with the next chance", name, exc_info=True)

    task = asyncio.create_task(run(), name=name)
    house.behind.add(task)
    task.add_done_callback(house.behind.discard)


async def within(seconds: float, work: Awaitable[Any]) -> Any:
    """The outcome of some work, or None when it fails or takes too long; for what must not stop health."""
    with suppress(Exception):
        async with asyncio.timeout(seconds):
            return await work
    return None
