"""The page: groups as a list, and one group with everything that is known of it. No script is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tocsin import clock, lifecycle, semconv
from tocsin.api import debug
from tocsin.api.auth import PAGE
from tocsin.api.calls import Call, House, Right
from tocsin.api.inputs import Inputs
from tocsin.api.views import STATIC, page, root_of, static_file, web_link
from tocsin.exporter import breadcrumbs
from tocsin.exporter.shown import frames_of
from tocsin.lifecycle import IllegalTransition, Status, Trigger
from tocsin.model import Severity
from tocsin.store import audit, groups, queries

_HOURS = 24
_PAGE_OF = 50
_ALIVE_WITHIN = timedelta(minutes=2)
_WORST_FIRST = tuple(reversed(Severity))
_ACTIONS = (Trigger.RESOLVE, Trigger.ACKNOWLEDGE, Trigger.MUTE, Trigger.IGNORE, Trigger.REOPEN)


# The list


@dataclass(frozen=True, slots=True, kw_only=True)
class _Overview:
    """What the list shows, read in one transaction."""

    found: list[groups.Group]
    following: str | None
    hours: dict[str, list[tuple[datetime, int]]]
    counts: dict[Status, int]
    stats: queries.Stats
    recent: int
    instances: list[queries.Row]
    choices: dict[str, list[str]]


def _read_overview(connection: Connection, filters: dict[str, Any], now: datetime) -> _Overview:
    found, following = groups.list_groups(connection, **filters)
    return _Overview(
        found=found,
        following=following,
        hours=queries.group_hours(connection, [group.id for group in found], _HOURS, now),
        counts=queries.group_counts(connection),
        stats=queries.stats(
            connection, _HOURS - 1, now, service=filters["service"], environment=filters["environment"]
        ),
        recent=queries.recent(connection, now - timedelta(hours=1)).count,
        instances=queries.list_instances(connection),
        choices=queries.choices(connection),
    )


async def show_groups(request: Request, house: House) -> Response:
    now = clock.now()
    given = Inputs(request.query_params)
    status = given.one_of("status", (*Status, "all")) or Status.OPEN
    severity = given.one_of("severity", tuple(Severity))
    chosen = {
        "status": status,
        "severity": severity,
        "service": given.text("service"),
        "environment": given.text("environment"),
        "category": given.text("category"),
        "q": given.text("q"),
    }
    filters = chosen | {
        "status": None if status == "all" else Status(status),
        "severity": Severity(severity) if severity else None,
        "limit": _PAGE_OF,
        "before": given.text("before"),
    }
    overview, is_writable = await asyncio.gather(
        house.store.read(_read_overview, filters, now), debug.takes_a_write(house)
    )
    alive = [row for row in overview.instances if row["ended_at"] is None and now - row["last_seen"] <= _ALIVE_WITHIN]
    return page(
        request,
        "groups.html",
        overview=overview,
        chosen=chosen,
        is_filtered=any(value for name, value in chosen.items() if name != "status"),
        is_first_page=filters["before"] is None,
        is_empty=not any(overview.counts.values()),
        is_writable=is_writable,
        alive=alive,
        alerts=debug.alerts_state(house),
        chart=_chart(overview.stats.by_hour),
        sparks={group_id: _spark(hours) for group_id, hours in overview.hours.items()},
        statuses=(*Status, "all"),
        severities=_WORST_FIRST,
        endpoint=_own_address(request, house),
    )


def _own_address(request: Request, house: House) -> str:
    """Where this server is reached, to be shown, never to be relied on."""
    return (house.settings.public_url or f"{request.url.scheme}://{request.url.netloc}") + root_of(request)


# Charts are drawn here, as plain SVG: numbers in, places out.


@dataclass(frozen=True, slots=True)
class _Bar:
    x: float
    y: float
    width: float
    height: float
    severity: str
    label: str


_CHART_WIDTH, _CHART_HEIGHT = 720, 96


def _chart(by_hour: list[tuple[datetime, dict[str, int]]]) -> dict[str, Any]:
    """Errors per hour, stacked by severity, the worst at the bottom."""
    top = max((sum(counts.values()) for _, counts in by_hour), default=0)
    step = _CHART_WIDTH / max(len(by_hour), 1)
    bars = []
    for place, (hour, counts) in enumerate(by_hour):
        label = f"{hour:%H:%M} UTC: " + (
            ", ".join(f"{counts[one]} {one}" for one in _WORST_FIRST if counts.get(one)) or "none"
        )
        y = float(_CHART_HEIGHT)
        for severity in _WORST_FIRST:
            if count := counts.get(severity, 0):
                height = max(count / top * (_CHART_HEIGHT - 4), 1.5)
                y -= height
                bars.append(
                    _Bar(round(place * step + 2, 1), round(y, 1), round(step - 4, 1), round(height, 1), severity, label)
                )
    ticks = [(round(place * step, 1), f"{hour:%H:%M}") for place, (hour, _) in enumerate(by_hour) if hour.hour % 6 == 0]
    return {"bars": bars, "ticks": ticks, "top": top, "width": _CHART_WIDTH, "height": _CHART_HEIGHT}


def _spark(hours: list[tuple[datetime, int]]) -> list[tuple[int, float, float]]:
    """Small bars for one group: (x, y, height) in a box of 96 by 24."""
    top = max((count for _, count in hours), default=0) or 1
    bars = []
    for place, (_, count) in enumerate(hours):
        height = round(max(count / top * 24, 2.0), 1) if count else 0.0
        bars.append((place * 4, 24 - height, height))
    return bars


# One group


async def show_group(request: Request, house: House) -> Response:
    now = clock.now()
    number = debug.number_in(request)
    error_id = Inputs(request.query_params).text("error", 40)
    group, errors, error, hours, history = await house.store.read(_read_group, number, error_id, now)
    context: Mapping[str, Any] = (error or {}).get("context") or {}
    return page(
        request,
        "group.html",
        group=group,
        error=error,
        errors=errors,
        history=history,
        chart=_chart([(hour, {group.severity: count} if count else {}) for hour, count in hours]),
        stretches=_stretches(frames_of(context, (error or {}).get("stack"))),
        causes=_causes(context.get(semconv.CAUSES)),
        crumbs=breadcrumbs.told(context.get(semconv.BREADCRUMBS)),
        request_facts=_facts(context, _is_request),
        other_facts=_facts(context, lambda name: _is_standard(name) and not _is_request(name)),
        own_facts=_facts(context, lambda name: not _is_standard(name)),
        trace_link=_trace_link(house, error),
        actions=[trigger for trigger in _ACTIONS if _makes_sense(group.status, trigger)],
    )


def _read_group(
    connection: Connection, number: int, error_id: str | None, now: datetime
) -> tuple[groups.Group, list[queries.Row], queries.Row | None, list[tuple[datetime, int]], list[audit.Entry]]:
    group = groups.by_number(connection, number)
    errors = queries.group_errors(connection, group.id)
    error = errors[0] if errors else None
    if error_id:
        asked = queries.get_error(connection, error_id)
        error = asked if asked["group_id"] == group.id else error
    hours = queries.group_hours(connection, [group.id], _HOURS, now)[group.id]
    return group, errors, error, hours, audit.of_target(connection, f"#{number}")


def _makes_sense(status: Status, trigger: Trigger) -> bool:
    """Whether to offer an action: the lifecycle allows it, and it would change something."""
    try:
        return lifecycle.advance(status, trigger)[0] != status
    except IllegalTransition:
        return False


# A context may come from anywhere: what has not the expected shape is left out, or shown as text.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    module: str
    function: str
    file: str
    line: int
    in_app: bool
    source: list[tuple[int, str, bool]]  # line number, text, whether it is the line itself
    variables: list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stretch:
    """Frames in a row that are all the team's own, or all from libraries."""

    in_app: bool
    frames: list[_Frame]


def _stretches(found: Sequence[Mapping[str, Any]]) -> list[_Stretch]:
    """The frames, innermost first, as people look for the cause."""
    frames = [_frame(one) for one in reversed(found)]
    return [
        _Stretch(in_app=in_app, frames=list(stretch)) for in_app, stretch in groupby(frames, lambda one: one.in_app)
    ]


def _frame(one: Mapping[str, Any]) -> _Frame:
    line = one.get("line")
    number = line if isinstance(line, int) and not isinstance(line, bool) else 0
    before, after = (_lines(one.get(name)) for name in ("before", "after"))
    text = str(one.get("text") or "")
    indent = _indent_like(text, before, after)
    source = [(number - len(before) + place, words, False) for place, words in enumerate(before)]
    if text:
        source.append((number, indent + text, True))
    source += [(number + 1 + place, words, False) for place, words in enumerate(after)]
    return _Frame(
        module=str(one.get("module") or ""),
        function=str(one.get("function") or "?"),
        file=str(one.get("file") or ""),
        line=number,
        in_app=one.get("in_app") is True,
        source=source,
        variables=_variables(one.get("vars")),
    )


def _indent_like(text: str, before: list[str], after: list[str]) -> str:
    """The raising line is stored stripped; its place is worked out from the lines around it."""
    if text[:1].isspace():
        return ""
    above = next((words for words in reversed(before) if words.strip()), None)
    nearest = above or next((words for words in after if words.strip()), "")
    indent = nearest[: len(nearest) - len(nearest.lstrip())]
    return indent + "    " if above and above.rstrip().endswith((":", "(", "[", "{")) else indent


def _lines(value: Any) -> list[str]:
    return [str(line) for line in value][:20] if isinstance(value, list) else []


def _variables(value: Any) -> list[tuple[str, str]]:
    """By name, since a database may keep them in an order of its own."""
    return sorted((str(name), str(text)) for name, text in value.items())[:50] if isinstance(value, dict) else []


def _causes(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        return []
    return [(str(one.get("type") or "?"), str(one.get("message") or "")) for one in value if isinstance(one, dict)]


_REQUEST = ("http.", "url.", "client.", "user_agent.", "server.", "network.")
_STANDARD = (
    *_REQUEST,
    *("tocsin.", "exception.", "code.", "thread.", "process.", "host.", "service.", "telemetry.", "deployment."),
    *("otel.", "os.", "messaging.", "db.", "rpc.", "error."),
)
_SHOWN_APART = {semconv.FRAMES, semconv.CAUSES, semconv.EXCEPTION_BASES, semconv.BREADCRUMBS}


def _is_request(name: str) -> bool:
    return name.startswith(_REQUEST)


def _is_standard(name: str) -> bool:
    return name.startswith(_STANDARD)


def _facts(context: Mapping[str, Any], wanted: Callable[[str], bool]) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in context.items() if name not in _SHOWN_APART and wanted(name))


def _trace_link(house: House, error: queries.Row | None) -> str | None:
    template = house.settings.trace_url
    trace_id = (error or {}).get("trace_id") or ""
    if not template or not trace_id.isalnum():
        return None
    return web_link(template.replace("{trace_id}", trace_id))


def _acts(trigger: Trigger) -> Callable[[Request, House], Awaitable[Response]]:
    async def run(request: Request, house: House) -> Response:
        number = debug.number_in(request)
        until = clock.now() + await debug.mute_span(request) if trigger is Trigger.MUTE else None
        await debug.act(request, house, number, trigger, until=until)
        return RedirectResponse(f"{root_of(request)}{PAGE}/groups/{number}", 303)

    return run


# The table


def _static(name: str) -> Call:
    async def run(request: Request, house: House) -> Response:
        return static_file(name)

    return Call(
        method="GET",
        path=f"{PAGE}/static/{name}",
        right=Right.NONE,
        run=run,
        about=f"{name} of the page.",
        is_page=True,
    )


async def go_to_page(request: Request, house: House) -> Response:
    return RedirectResponse(root_of(request) + PAGE, 303)


def _calls(triggers: Iterable[Trigger]) -> Iterable[Call]:
    for path in ("/", f"{PAGE}/"):
        yield Call(method="GET", path=path, right=Right.NONE, run=go_to_page, about="To the page.", is_page=True)
    yield Call(method="GET", path=PAGE, right=Right.READ, run=show_groups, about="The groups.", is_page=True)
    yield Call(
        method="GET", path=f"{PAGE}/groups/{{n}}", right=Right.READ, run=show_group, about="One group.", is_page=True
    )
    for trigger in triggers:
        yield Call(
            method="POST",
            path=f"{PAGE}/groups/{{n}}/{trigger}",
            right=Right.FULL,
            run=_acts(trigger),
            about=f"{trigger.capitalize()} a group.",
            is_page=True,
        )
    yield from map(_static, STATIC)


CALLS = tuple(_calls(_ACTIONS))
