"""Errors that somebody else's code describes: what becomes of them in a line, and which are the same."""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import Any

import pytest

from tests import hostile
from tests.hostile import NOW_NS
from tocsin import semconv
from tocsin.exporter import foreign, posted, shipped
from tocsin.exporter.foreign import NO_STACK, Error, Resource, Stacks, content_id, merge, resource_of, tidy
from tocsin.exporter.frames import outline
from tocsin.exporter.records import Malformed, Unreadable
from tocsin.exporter.spool import LINE_BYTES
from tocsin.failures import BadInput
from tocsin.model import Severity
from tocsin.text import STACK_LIMIT

SHOP = resource_of({"service.name": "shop"})
TRACE = "ab" * 16

PYTHON = """\
Traceback (most recent call last):
{outer}  File "/app/shop/orders.py", line 7, in pay
    raise OutOfStock(order)
shop.errors.OutOfStock: 7 is gone
"""
INNER = PYTHON.format(outer="")
OUTER = PYTHON.format(outer='  File "/app/shop/api.py", line 3, in post\n    pay(order)\n')


def _error(**values: Any) -> Error:
    defaults: dict[str, Any] = {
        "id": "01234567-89ab-8cde-8f01-23456789abcd",
        "time_ns": NOW_NS,
        "message": "7 is gone",
        "mechanism": "span",
        "resource": SHOP,
    }
    return Error(**{**defaults, **values})


def _line(error: Error) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(foreign.line(error))
    return found


def _id(stack: str = "", kind: str | None = "OutOfStock", message: str = "7 is gone", trace: str | None = TRACE) -> str:
    return content_id("shop", trace, NOW_NS, Stacks().get(stack) if stack else NO_STACK, kind, message)


# Ids


def test_one_exception_has_one_id_from_each_span_and_from_a_log_record() -> None:
    """Its stack grows on its way out, and logging knows neither its module nor its whole message."""
    ids = {_id(INNER, "shop.errors.OutOfStock"), _id(OUTER, "shop.errors.OutOfStock"), _id(INNER, "OutOfStock", "7")}

    assert len(ids) == 1


@pytest.mark.parametrize(
    "other",
    [
        _id(INNER.replace("7 is gone", "8 is gone")),
        _id(INNER.replace("line 7", "line 9")),
        _id(INNER.replace("OutOfStock", "Refused")),
        _id(INNER, trace="cd" * 16),
        _id(),
        content_id("billing", TRACE, NOW_NS, Stacks().get(INNER), "OutOfStock", "7 is gone"),
    ],
)
def test_what_differs_in_message_place_class_trace_or_service_is_another_error(other: str) -> None:
    assert other != _id(INNER)


def test_without_a_trace_the_time_tells_errors_apart() -> None:
    """A loop may fail in the same way for ever."""
    first, again, later = (content_id("shop", None, NOW_NS + at, NO_STACK, "KeyError", "x") for at in (0, 0, 1))

    assert first == again != later


def test_an_id_is_a_uuid_of_version_8() -> None:
    assert foreign.uuid_of(_id()) == _id()
    assert (_id()[14], _id()[19] in "89ab") == ("8", True)


# What wins


def test_of_two_sightings_the_worst_and_the_most_is_kept() -> None:
    """A log record knows how bad it is, the outermost span how it ended."""
    logged = _error(mechanism="log record", severity_number=21, stack=Stacks().get(INNER), logger="shop.orders")
    passed = _error(handled=False, stack=Stacks().get(OUTER), attributes={"http.route": "/x"}, exception_type="a.B")

    for first, second in ((logged, passed), (passed, logged)):
        line = _line(merge(_copy(first), _copy(second)))
        attributes = line["attributes"]
        assert line["severity_number"] == 21
        assert attributes[semconv.HANDLED] is False
        assert attributes[semconv.EXCEPTION_STACKTRACE] == OUTER
        assert attributes["http.route"] == "/x"
        assert attributes[semconv.LOGGER] == "shop.orders"


def _copy(error: Error) -> Error:
    return Error(**{name: getattr(error, name) for name in Error.__slots__})


def test_a_warning_about_an_error_does_not_make_it_less() -> None:
    """The span alone would be high; a log record at WARN beside it changes nothing."""
    warned = _error(mechanism="log record", severity_number=13)

    assert merge(warned, _error()).mechanism == "span"


# Cleaning


def test_a_line_holds_no_secret_and_nothing_that_is_not_printable() -> None:
    line = foreign.line(
        _error(
            message="password=hunter22\x00",
            stack=Stacks().get(INNER + "token=abcdefghijkl\ud800"),
            attributes={
                "db.password": "hunter22",
                "url.full": "https://anna:hunter22@h/x?token=hunter22",
                "url.query": "token=hunter22&a=1",
                "note": {"api_key": "hunter22", "deep": [["Bearer hunter22hunter22"]]},
                "big": 2**70,
                "nan": float("nan"),
                "raw": b"\xff\xfe",
            },
        )
    )

    assert b"hunter22" not in line
    assert b"abcdefghijkl" not in line
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["attributes"]["url.query"] == "token=[scrubbed]&a=1"


def test_a_line_always_fits() -> None:
    """Whatever its text is made of: a sign may take six bytes."""
    large = {f"k{at}": "\x01💥" * 8_000 for at in range(200)}

    for text in ("x" * 10**6, "💥" * 10**6, "\x01" * 10**6, '"' * 10**6, "\\" * 10**6):
        line = foreign.line(_error(message=text, stack=Stacks().get(text), attributes={**large, "t": text}))
        assert len(line) <= LINE_BYTES
        assert json.loads(line)["attributes"][semconv.EXCEPTION_STACKTRACE]


def test_no_attribute_is_taken_for_the_exporters_own_word() -> None:
    """What only capture says, an attribute of that name does not."""
    attributes = {
        semconv.FRAMES: "x",
        semconv.EXCEPTION_BASES: 5,
        semconv.SYNTHETIC: True,
        semconv.PLACE: 7,
        semconv.HTTP_STATUS: "teapot",
        semconv.EXCEPTION_TYPE: 5,
        "tocsin.group.number": 1,
    }

    assert _line(_error(attributes=attributes))["attributes"] == {semconv.MECHANISM: "span"}


def test_stacks_are_kept_within_bounds() -> None:
    """A sender with ever new stacks takes no more memory than one with few."""
    stacks = Stacks(limit=10_000)
    for at in range(1_000):
        stacks.get("Error: x\n    at " + f"{at}" + "x" * 100)

    assert 0 < sum(len(before) + len(after) for before, after in stacks._known) <= 10_000


@pytest.mark.parametrize(
    "text",
    [
        INNER,
        OUTER,
        INNER.replace("7 is gone", "7\n  is\ngone"),
        INNER + "\nDuring handling of the above exception, another exception occurred:\n\n" + OUTER,
        INNER.replace("7 is gone", "remote:\n" + OUTER),
        '  + Exception Group Traceback (most recent call last):\n  |   File "/a.py", line 1, in f\n  | G: both\n',
        "TypeError: x\n    at f (/a.js:1:2)\n    at g (/b.js:1:2)",
        "x\ny\n    at f (/a.js:1:2)",
        "no stack",
        "",
    ],
)
def test_a_stack_in_parts_is_the_stack(text: str) -> None:
    """Only its message is looked at each time; what comes out is the same as of the whole."""
    stacks = Stacks()

    for made in (stacks.get(text), stacks.get(text)):
        assert json.loads(made.encoded) == text
        assert made.outline == outline(text)


# Whose they are


def test_a_resource_has_a_name_in_any_case_and_old_names_are_known() -> None:
    assert json.loads(resource_of({}).encoded) == {"service.name": "unknown_service"}
    found = json.loads(
        resource_of({"service.name": "shop", "deployment.environment": "test", "process.pid": 7, "x": 1}).encoded
    )
    assert found == {"service.name": "shop", "deployment.environment.name": "test", "process.pid": 7}


@pytest.mark.parametrize("value", [5, "", None, [], {"a": 1}, True, "x" * 10**5, "\x00\ud800"])
def test_a_resource_of_wrong_types_is_still_one(value: Any) -> None:
    found = json.loads(resource_of({"service.name": value, "process.pid": value, semconv.SENT: value}).encoded)

    assert isinstance(found["service.name"], str)
    assert 0 < len(found["service.name"]) <= 210


# Posted


def _posted(body: Any) -> list[dict[str, Any]]:
    return [_line(one) for one in posted.read(json.dumps(body).encode(), Stacks(), NOW_NS)]


def test_a_post_needs_a_message_alone() -> None:
    line = _posted({"message": "no space left"})[0]

    assert line["body"] == "no space left"
    assert line["time_unix_nano"] == NOW_NS
    assert line["resource"] == {"service.name": "unknown_service"}
    assert line["attributes"] == {semconv.MECHANISM: "posted", semconv.SEVERITY: "high"}


def test_a_post_may_say_all_there_is() -> None:
    line = _posted(
        {
            "message": "x",
            "stack": "TypeError: x\n    at f (/a.js:1:2)",
            "severity": "critical",
            "category": "stripe",
            "context": {"order": 7, "password": "hunter22"},
            "service": "cron",
            "environment": "test",
            "release": "1.2",
            "timestamp": "2026-03-14T09:00:00Z",
            "id": "0198A7B2-0000-7000-8000-000000000001",
            "host": "db1",
        }
    )[0]

    attributes = line["attributes"]
    assert line["id"] == "0198a7b2-0000-7000-8000-000000000001"
    assert line["time_unix_nano"] == 1_773_478_800_000_000_000
    assert line["resource"] == {
        "service.name": "cron",
        "service.version": "1.2",
        "deployment.environment.name": "test",
    }
    assert attributes[semconv.EXCEPTION_TYPE] == "TypeError"
    assert (attributes[semconv.SEVERITY], attributes[semconv.CATEGORY]) == ("critical", "stripe")
    assert attributes[semconv.CONTEXT] == {"host": "db1", "order": 7, "password": "[scrubbed]"}


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [
        (1_773_478_800, 1_773_478_800),
        (1_773_478_800.5, 1_773_478_800.5),
        (1_773_478_800_000, 1_773_478_800),
        ("2026-03-14T12:00:00+03:00", 1_773_478_800),
        ("2026-03-14 09:00:00", 1_773_478_800),
        ("2040-01-01T00:00:00Z", NOW_NS / 1e9),
    ],
)
def test_a_time_is_taken_in_each_usual_form(timestamp: Any, seconds: float) -> None:
    """One from the future is now."""
    assert _posted({"message": "x", "timestamp": timestamp})[0]["time_unix_nano"] == int(seconds * 1e9)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "message"),
        ({"message": ""}, "message"),
        ({"message": 5}, "message"),
        ([{"message": "x"}, {"message": "x", "severity": "bad"}], "[1].severity"),
        ([{"message": "x", "category": "x" * 41}], "[0].category"),
        ({"message": "x", "category": ""}, "category"),
        ({"message": "x", "context": []}, "context"),
        ({"message": "x", "service": 5}, "service"),
        ({"message": "x", "timestamp": "yesterday"}, "timestamp"),
        ({"message": "x", "timestamp": 5}, "timestamp"),
        ({"message": "x", "timestamp": True}, "timestamp"),
        ({"message": "x", "id": "7"}, "id"),
        ([5], "[0]"),
        (5, "body"),
        (None, "body"),
        ([{"message": "x"}] * 1_001, "errors"),
    ],
)
def test_a_wrong_field_is_named(body: Any, field: str) -> None:
    """And nothing of the body is taken."""
    with pytest.raises(BadInput) as caught:
        _posted(body)

    assert caught.value.field == field


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 10**5, b"\xff", b'{"message":' + b"9" * 10**6 + b"}", b"NaN"])
def test_what_is_no_json_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        posted.read(body, Stacks(), NOW_NS)


# Another tocsin's lines

OWN_ID = "0198a7b2-0000-7000-8000-000000000001"
FRAME = {"module": "shop", "function": "f", "file": "/a.py", "line": 1, "text": "x", "in_app": True}


def _shipped(resource: Resource = SHOP, **line: Any) -> dict[str, Any]:
    made = shipped.read(json.dumps({"v": 1, **line}), resource, Stacks(), NOW_NS)
    found: dict[str, Any] = json.loads(made if isinstance(made, bytes) else foreign.line(made))
    return found


def test_an_error_of_another_tocsin_keeps_its_id_and_all_that_capture_knew() -> None:
    attributes = {
        semconv.MECHANISM: "asgi",
        semconv.HANDLED: False,
        semconv.EXCEPTION_TYPE: "shop.Refused",
        semconv.EXCEPTION_STACKTRACE: INNER,
        semconv.EXCEPTION_BASES: {"own": ["shop.Refused", "ValueError"], "causes": ["OSError"]},
        semconv.EXCEPTION_STATUS: 503,
        semconv.EXCEPTION_HOSTS: ["api.example.com"],
        semconv.CAUSES: [{"type": "OSError", "message": "gone"}],
        semconv.CONTEXT: {"order": 7},
        semconv.HTTP_STATUS: 500,
        semconv.PLACE: "/orders",
        semconv.FRAMES: [FRAME],
        "http.route": "/orders/{id}",
    }

    line = _shipped(
        kind="error", id=OWN_ID, time_unix_nano=NOW_NS, severity_number=17, body="gone", attributes=attributes
    )

    assert line["id"] == OWN_ID
    assert line["attributes"] == attributes
    assert line["resource"] == {"service.name": "shop"}


def test_what_another_tocsin_has_scrubbed_is_scrubbed_again() -> None:
    """Whoever has the token may write lines by hand."""
    line = _shipped(
        kind="error",
        id=OWN_ID,
        body="password=hunter22",
        attributes={semconv.FRAMES: [{**FRAME, "text": "password='hunter22'"}], semconv.CONTEXT: {"token": "hunter22"}},
    )

    assert "hunter22" not in json.dumps(line)


def test_local_variables_pass_scrubbed_again_and_bounded() -> None:
    """Whatever a line says that somebody has written by hand."""
    sent = {"order": "7", "password": "hunter22", "said": "token=hunter22", "number": 5, "x": "x" * 10_000}
    frames = [FRAME | {"vars": sent}, FRAME | {"vars": [1]}] + [FRAME | {"vars": {"y": "y" * 400}}] * 100

    line = _shipped(kind="error", id=OWN_ID, attributes={semconv.FRAMES: [FRAME | {"vars": sent}]})
    (frame,) = line["attributes"][semconv.FRAMES]
    assert frame["vars"].items() >= {"order": "7", "password": "[scrubbed]", "number": "5"}.items()
    assert "hunter22" not in json.dumps(line)
    assert len(frame["vars"]["x"]) <= 500

    many = _shipped(kind="error", id=OWN_ID, attributes={semconv.FRAMES: frames})["attributes"][semconv.FRAMES]
    assert 5_000 < sum(len(text) for one in many for text in one.get("vars", {}).values()) <= 10_000


def test_a_clock_that_is_wrong_is_put_right() -> None:
    """By when the sender says that it sent; what a network takes is no wrong clock."""
    an_hour_behind = resource_of({semconv.SENT: str(NOW_NS - 3_600 * 10**9)}, NOW_NS)
    a_moment_ago = resource_of({semconv.SENT: str(NOW_NS - 10**8)}, NOW_NS)
    line: dict[str, Any] = {"kind": "error", "id": OWN_ID, "time_unix_nano": NOW_NS - 3_601 * 10**9, "attributes": {}}

    assert _shipped(an_hour_behind, **line)["time_unix_nano"] == NOW_NS - 10**9
    count: dict[str, Any] = {"kind": "repeats", "error_id": OWN_ID, "to": 1, "time_ns": NOW_NS - 3_601 * 10**9}
    assert _shipped(an_hour_behind, **count)["time_ns"] == NOW_NS - 10**9
    assert _shipped(a_moment_ago, **line)["time_unix_nano"] == line["time_unix_nano"]


def test_counts_amendments_and_heartbeats_pass() -> None:
    repeats: dict[str, Any] = {"kind": "repeats", "error_id": OWN_ID, "from": 2, "to": 5, "time_ns": NOW_NS}
    beat: dict[str, Any] = {
        "kind": "instance",
        "id": "i1",
        "service": "shop",
        "host": "h",
        "pid": 7,
        "started_at_ns": NOW_NS,
        "memory_limit_bytes": 5,
        "memory_trend": -7,
        "loop_lag_ms": 40,
        "beats_every_s": 60.0,
        "seen_at_ns": NOW_NS,
        "lost": 0,
    }

    first, again, later = _shipped(**repeats), _shipped(**repeats), _shipped(**{**repeats, "from": 5, "to": 6})
    assert first == again
    assert foreign.uuid_of(first["id"]) == first["id"] != later["id"]
    assert _shipped(kind="amend", error_id=OWN_ID, severity="high", handled=False)["severity"] == "high"
    assert _shipped(**beat).items() >= beat.items()


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "segment"},
        {"kind": "error"},
        {"kind": "error", "id": "7"},
        {"kind": "error", "id": OWN_ID, "v": 2},
        {"kind": "error", "id": OWN_ID, "body": 5},
        {"kind": "error", "id": OWN_ID, "attributes": []},
        {"kind": "error", "id": OWN_ID, "severity_number": 99},
        {"kind": "error", "id": OWN_ID, "time_unix_nano": "x"},
        {"kind": "error", "id": OWN_ID, "trace_id": "AB"},
        {"kind": "error", "id": OWN_ID, "attributes": {semconv.FRAMES: [5]}},
        {"kind": "amend", "error_id": OWN_ID, "severity": "worst"},
        {"kind": "repeats", "error_id": OWN_ID, "from": 5, "to": 1},
        {"kind": "repeats", "error_id": OWN_ID, "from": -1, "to": 1},
        {"kind": "instance", "id": 5},
        {"kind": "instance", "id": "x", "pid": -1},
        {"kind": "instance", "id": "x", "beats_every_s": -1},
        {"kind": "instance", "id": "x", "beats_every_s": float("nan")},
        {"kind": "instance", "id": "x", "beats_every_s": True},
        {"kind": "instance", "id": "x", "seen_at_ns": "now"},
    ],
)
def test_a_line_that_no_tocsin_writes_is_refused_alone(line: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        _shipped(**line)


@pytest.mark.parametrize("text", [None, 5, "", "{", "[]", "[" * 10**5, "x" * (LINE_BYTES + 1), '{"v":1e999}'])
def test_a_text_that_is_no_line_is_refused_alone(text: Any) -> None:
    with pytest.raises(Malformed):
        shipped.read(text, SHOP, Stacks(), NOW_NS)


def test_what_a_sender_decides_is_honoured_where_it_is_valid() -> None:
    right = {
        semconv.SEVERITY: "low",
        semconv.CATEGORY: "stripe",
        semconv.HANDLED: True,
        semconv.MECHANISM: "uncaughtException",
        semconv.EXIT: True,
        semconv.CONTEXT: {"a": 1},
    }
    wrong = {key: ["no"] for key in right} | {semconv.SEVERITY: "worst", semconv.CATEGORY: "x" * 41}
    error, other = _error(), _error()

    foreign.said_by_sender(error, right)
    foreign.said_by_sender(other, wrong)

    assert _line(error)["attributes"] == right
    assert other == _error()
    assert error.severity is Severity.LOW


@pytest.mark.parametrize("stack", hostile.STACKS + hostile.TEXTS)
def test_a_stack_that_is_cleaned_in_parts_is_as_clean(stack: str) -> None:
    """The message is cleaned apart from the frames, which are known; nobody sees that."""
    for text in (stack, f"{INNER}{stack}", f"Error: {stack}\n    at charge (/srv/pay.js:7:9)", f"{stack}\n{INNER}"):
        made = Stacks().get(text)

        assert made.encoded == encode_basestring(tidy(text, STACK_LIMIT))
        assert made.outline == outline(tidy(text, STACK_LIMIT))


def test_of_stacks_with_the_same_frames_only_the_message_is_new() -> None:
    """Secrets in it are found as in any text."""
    stacks = Stacks()
    told = [stacks.get(f"{INNER.rstrip()} password=secret{number}") for number in range(3)]

    assert not any("secret" in one.encoded for one in told)
