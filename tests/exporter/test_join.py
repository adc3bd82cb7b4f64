"""Errors and the requests in which they happened, whichever of the two comes first."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hostile import NOW_NS
from tocsin import semconv
from tocsin.exporter.join import AGE_NS, MOST_OF_A_TRACE, Family, Memory, Request, Told, nearest, renamed
from tocsin.exporter.records import SERVER, Span

TRACE = "ab" * 16
SECOND = 10**9


def _span(span_id: str, parent: str | None = None, kind: int = 1, **values: Any) -> Span:
    attributes = values.pop("attributes", {})
    start, end = values.pop("start_ns", NOW_NS), values.pop("end_ns", NOW_NS + SECOND)
    return Span(TRACE, span_id, parent, kind, start, end, is_failed=False, attributes=attributes, **values)


def _request(span_id: str = "s", start_ns: int = NOW_NS, end_ns: int = NOW_NS + SECOND) -> Request:
    return Request(span_id, start_ns, end_ns, 500, True, {"http.request.method": "GET"})


def _told(error_id: str = "e", **values: Any) -> Told:
    defaults: dict[str, Any] = {"span_id": None, "time_ns": NOW_NS, "rank": 2, "handled": None, "has_request": False}
    return Told(id=error_id, **{**defaults, **values})


def test_a_request_says_what_was_asked_and_how_it_was_answered() -> None:
    """Under today's names, also where a library still has the old ones."""
    old = {
        "http.method": "POST",
        "http.target": "/x/7?a=1",
        "http.route": "/x/{id}",
        "http.status_code": 503,
        "http.user_agent": "curl",
        "net.peer.ip": "10.0.0.1",
        "http.flavor": "1.1",
    }

    request = Request.of(_span("s", kind=SERVER, attributes=old))

    assert request.attributes == {
        "http.request.method": "POST",
        "url.path": "/x/7",
        "url.query": "a=1",
        "http.route": "/x/{id}",
        "http.response.status_code": 503,
        "user_agent.original": "curl",
        "client.address": "10.0.0.1",
    }
    assert (request.status, request.has_failed) == (503, True)


@pytest.mark.parametrize("status", ["x", 99, 1_000, True, None, 5.5, [], "5003"])
def test_a_status_that_is_none_is_left_out(status: Any) -> None:
    request = Request.of(_span("s", kind=SERVER, attributes={semconv.HTTP_STATUS: status, "http.route": "/x"}))

    assert request.status is None
    assert request.attributes == {"http.route": "/x"}


def test_todays_name_wins_over_the_old_one() -> None:
    assert renamed({"http.method": "GET", "http.request.method": "POST"}) == {"http.request.method": "POST"}
    assert renamed({"http.request.method": "POST", "http.method": "GET"}) == {"http.request.method": "POST"}


def test_the_way_up_leads_to_the_nearest_request() -> None:
    """Of several in one trace the one that the span is in."""
    spans = [_span("a", None, SERVER), _span("b", "a"), _span("c", "b", SERVER), _span("d", "c"), _span("e", "gone")]
    family = Family(spans)

    found = {one.span_id: family.request_above(TRACE, one.span_id) for one in spans}

    assert {key: request and request.span_id for key, request in found.items()} == {
        "a": "a",
        "b": "a",
        "c": "c",
        "d": "c",
        "e": None,
    }


def test_parents_that_go_round_in_a_circle_end() -> None:
    assert Family([_span("a", "b"), _span("b", "a")]).request_above(TRACE, "a") is None


def test_of_several_requests_the_shortest_that_was_open_then_is_taken() -> None:
    outer, inner = _request("o"), _request("i", NOW_NS + 10**7, NOW_NS + 2 * 10**7)
    both = [outer, inner]

    assert nearest(both, "o", NOW_NS + 15 * 10**6) is outer
    assert nearest(both, None, NOW_NS + 15 * 10**6) is inner
    assert nearest(both, None, NOW_NS + SECOND // 2) is outer
    assert nearest(both, None, NOW_NS + 9 * SECOND) is None
    assert nearest([outer], None, NOW_NS + 9 * SECOND) is outer


def test_a_request_that_comes_late_finds_the_errors_that_were_told_before() -> None:
    memory = Memory()
    memory.tell("shop", TRACE, _told("e1"), NOW_NS)
    memory.tell("shop", TRACE, _told("e2", has_request=True), NOW_NS)
    memory.tell("other", TRACE, _told("e3"), NOW_NS)

    assert [one.id for one in memory.add_request("shop", TRACE, _request(), NOW_NS)] == ["e1"]
    assert [one.id for one in memory.add_request("shop", TRACE, _request(), NOW_NS)] == ["e1"]  # sent again
    assert memory.request_of("shop", TRACE, None, NOW_NS) == _request()
    assert memory.request_of("other", TRACE, None, NOW_NS) is None


def test_what_was_told_first_stays_what_later_tellings_are_measured_by() -> None:
    """So a batch that is sent again says the same again."""
    memory = Memory()

    assert memory.tell("shop", TRACE, _told(rank=0), NOW_NS) is None
    assert memory.tell("shop", TRACE, _told(rank=3), NOW_NS) == _told(rank=0)
    assert memory.tell("shop", TRACE, _told(rank=3), NOW_NS) == _told(rank=0)


def test_memory_is_bounded_in_traces_and_in_what_each_holds() -> None:
    """However many there are, and however long one goes on."""
    memory = Memory(most_traces=10)
    for at in range(100):
        memory.tell("shop", f"{at}", _told(), NOW_NS)
        memory.add_request("shop", "long", _request(f"{at}"), NOW_NS)
        memory.tell("shop", "long", _told(f"e{at}"), NOW_NS)
        memory.call("shop", "long", f"c{at}", f"o{at}", NOW_NS)

    assert len(memory._traces) == 10
    assert all(
        len(one.errors) <= MOST_OF_A_TRACE
        and len(one.requests) <= MOST_OF_A_TRACE
        and len(one.aliases) <= MOST_OF_A_TRACE
        for one in memory._traces.values()
    )


def test_memory_is_bounded_in_what_requests_say() -> None:
    """A thousand traces of twenty requests with long addresses would else be hundreds of megabytes."""
    memory = Memory(most_bytes=50_000)
    said = {"url.path": "/" * 1_000, "url.query": "q" * 1_000}
    for at in range(100):
        request = Request(f"s{at % 5}", NOW_NS, NOW_NS + SECOND, 500, True, dict(said))
        memory.add_request("shop", f"t{at // 5}", request, NOW_NS)

    known = [at for at in range(20) if memory.request_of("shop", f"t{at}", "s0", NOW_NS) is not None]

    assert known == list(range(17, 20))  # the latest, of 13 to 14 thousand bytes each
    memory.add_request("shop", "t0", Request("s0", NOW_NS, NOW_NS, 500, True, {"url.path": "/" * 100_000}), NOW_NS)
    assert memory.request_of("shop", "t0", "s0", NOW_NS) is not None  # one alone may be too large


def test_what_is_old_is_forgotten() -> None:
    memory = Memory()
    memory.add_request("shop", TRACE, _request(), NOW_NS)
    memory.tell("shop", "another", _told(), NOW_NS + AGE_NS + 1)

    assert memory.request_of("shop", TRACE, None, NOW_NS) is None


def test_an_error_is_called_by_the_id_that_its_process_gave_it() -> None:
    memory = Memory()
    memory.call("shop", TRACE, "content", "own", NOW_NS)

    assert memory.called("shop", TRACE, "content") == "own"
    assert memory.called("shop", TRACE, "other") == "other"
    assert memory.called("shop", "another", "content") == "content"
