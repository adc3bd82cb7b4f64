"""The application: the tables of calls behind one guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from tocsin.api import auth, beats, dashboard, debug, jobs, otlp, views
from tocsin.api.calls import Alerts, House, failure, routes_of
from tocsin.api.guard import Guard
from tocsin.settings import Settings
from tocsin.store import Store

if TYPE_CHECKING:
    from tocsin.exporter.door import Door

_FINISH_S = 2.0

CALLS = (*otlp.CALLS, *debug.CALLS, *jobs.CALLS, *beats.CALLS, *auth.CALLS, *dashboard.CALLS)


def create_app(
    settings: Settings | None = None,
    *,
    store: Store | None = None,
    alerts: Alerts | None = None,
    door: Door | None = None,
) -> Starlette:
    """
    The debug API and the page, to be served or mounted: ``app.mount("/tocsin", tocsin.api.create_app())``.

    Mounted, it opens the store at the first call that needs it, runs no alerts and no bot, and takes in no
    errors; it needs ``TOCSIN_TOKEN`` (or a token that ``tocsin serve`` made) like everywhere else.

    Args:
        settings: by default read from the environment.
        store: one that is open already; whoever gives it closes it.
        alerts: those that run beside it.
        door: takes in errors that come by HTTP; whoever gives it closes it.

    Raises:
        SettingsError: names every wrong setting.
    """
    settings = settings or Settings.load()
    house = House(settings=settings, opened=store, alerts=alerts, door=door)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await house.finish(_FINISH_S)
            if store is None and house.opened is not None:
                await house.opened.close()

    app = Starlette(
        routes=[*routes_of(CALLS, house, auth.authorize, views.failure)],
        middleware=[Middleware(Guard, house=house)],
        exception_handlers={HTTPException: _refuse},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # it would send people to whatever the Host header says
    app.state.house = house
    app.state.calls = CALLS
    app.state.throttle = auth.Throttle()
    return app


async def _refuse(request: Request, problem: Exception) -> Response:
    """What no route answers: an unknown path, a method that a path does not have."""
    assert isinstance(problem, HTTPException)
    texts: Mapping[int, str] = {404: "there is no such path", 405: f"{request.method[:20]} is not possible here"}
    fail = views.failure if "text/html" in request.headers.get("accept", "") else failure  # a person at a browser
    if request.scope["path"].endswith(otlp.PATHS):
        fail = otlp.failure
    return fail(request, problem.status_code, texts.get(problem.status_code, problem.detail), problem.headers or {})
