"""
What belongs together though it comes apart: an error, and the request in which it happened.

An exception is told of by the span that it passed, which knows only its route; what was asked and how
it was answered stands on the span by which the request came in, and that one ends last. So both are
remembered for a while, within bounds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tocsin import semconv
from tocsin.exporter.records import Span

MOST_TRACES: Final = 4_000
MOST_OF_A_TRACE: Final = 20
MOST_BYTES: Final = 3 * 2**20
"""What all traces may weigh together: a request's texts are whatever somebody asked for."""

AGE_NS: Final = 120 * 1_000_000_000

_SLACK_NS = 5_000_000  # clocks of one process may differ: spans are timed by a steady one
_MOST_STEPS = 100
_ERROR_WEIGHS = 300
_MOST_OF_A_VALUE = 1_000

# What is told of a request: today's names, each with those that it had before.
_TOLD: Final[Mapping[str, tuple[str, ...]]] = {
    semconv.HTTP_METHOD: ("http.method",),
    semconv.HTTP_ROUTE: (),
    semconv.HTTP_STATUS: ("http.status_code",),
    semconv.URL_PATH: (),
    semconv.URL_QUERY: (),
    semconv.URL_SCHEME: ("http.scheme",),
    semconv.CLIENT_ADDRESS: ("http.client_ip", "net.sock.peer.addr", "net.peer.ip"),
    semconv.USER_AGENT: ("http.user_agent",),
    "messaging.system": (),
    "messaging.destination.name": ("messaging.destination",),
    "messaging.operation.name": ("messaging.operation",),
    "rpc.method": (),
    "rpc.service": (),
}
_RENAMED: Final = {old: new for new, olds in _TOLD.items() for old in olds} | {
    "http.url": semconv.URL_FULL,
    "net.peer.name": semconv.SERVER_ADDRESS,
    "net.peer.port": "server.port",
    "code.filepath": semconv.CODE_FILE,
    "code.function": semconv.CODE_FUNCTION,
    "code.lineno": semconv.CODE_LINE,
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request or a message that came in, as the span of its entry has it."""

    span_id: str
    start_ns: int
    end_ns: int
    status: int | None
    has_failed: bool
    attributes: dict[str, Any]

    @classmethod
    def of(cls, span: Span) -> Request:
        """What a span of kind SERVER or CONSUMER says."""
        said = renamed(span.attributes)
        told = {key: _short(said[key]) for key in _TOLD if key in said}
        status = status_in(said)
        told.pop(semconv.HTTP_STATUS, None)
        if status is not None:
            told[semconv.HTTP_STATUS] = status
        has_failed = status >= 500 if status is not None else span.is_failed
        return cls(span.span_id, span.start_ns, span.end_ns, status, has_failed, told)

    @staticmethod
    def keys() -> Iterable[str]:
        """The names of the attributes that a request may have."""
        return _TOLD

    def covers(self, time_ns: int) -> bool:
        """Whether something happened while it was being answered."""
        return self.start_ns - _SLACK_NS <= time_ns <= self.end_ns + _SLACK_NS


@dataclass(slots=True)
class Told:
    """What the first line of an error said of it; what comes later and knows more amends it."""

    id: str
    span_id: str | None
    time_ns: int
    rank: int
    handled: bool | None
    has_request: bool


@dataclass(slots=True)
class _Trace:
    """What is remembered of one trace in one service; most have one error and no more."""

    since_ns: int
    requests: tuple[Request, ...] = ()
    errors: tuple[Told, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    weight: int = 0

    def weigh(self) -> int:
        """About how many bytes it takes."""
        texts = sum(len(value) for one in self.requests for value in one.attributes.values() if isinstance(value, str))
        return 400 + texts + 600 * len(self.requests) + _ERROR_WEIGHS * (len(self.errors) + len(self.aliases))


class Memory:
    """Requests and errors of late, by service and trace; the oldest traces are forgotten."""

    def __init__(self, most_traces: int = MOST_TRACES, age_ns: int = AGE_NS, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_traces
        self._most_bytes = most_bytes
        self._weight = 0
        self._age_ns = age_ns
        self._traces: OrderedDict[tuple[str, str], _Trace] = OrderedDict()

    def add_request(self, service: str, trace_id: str, request: Request, now_ns: int) -> list[Told]:
        """Remember a request; the errors that were told before it and belong to it."""
        trace = self._of(service, trace_id, now_ns)
        known = [one for one in trace.requests if one.span_id != request.span_id]
        trace.requests = (*known[1 - MOST_OF_A_TRACE :], request)
        self._weigh(trace)
        return [
            error
            for error in trace.errors
            if not error.has_request and nearest(trace.requests, error.span_id, error.time_ns) is request
        ]

    def request_of(self, service: str, trace_id: str, span_id: str | None, time_ns: int) -> Request | None:
        """The request in which something happened, if its span has come already."""
        trace = self._traces.get((service, trace_id))
        return nearest(trace.requests, span_id, time_ns) if trace is not None else None

    def tell(self, service: str, trace_id: str, error: Told, now_ns: int) -> Told | None:
        """Remember what is told of an error; what was told of it before, if it was."""
        trace = self._of(service, trace_id, now_ns)
        if not trace.errors and not trace.requests and not trace.aliases:  # most traces never have more
            trace.errors = (error,)
            self._add(trace, 400 + _ERROR_WEIGHS)
            return None
        for before in trace.errors:
            if before.id == error.id:
                return before
        trace.errors = (*trace.errors[1 - MOST_OF_A_TRACE :], error)
        self._weigh(trace)
        return None

    def call(self, service: str, trace_id: str, content_id: str, own_id: str, now_ns: int) -> None:
        """Remember that an error by its content has an id of its own, which its process gave it."""
        trace = self._of(service, trace_id, now_ns)
        known = [pair for pair in trace.aliases if pair[0] != content_id]
        trace.aliases = (*known[1 - MOST_OF_A_TRACE :], (content_id, own_id))
        self._weigh(trace)

    def called(self, service: str, trace_id: str, content_id: str) -> str:
        """The id of an error: its own, if one was given to it, else that of its content."""
        trace = self._traces.get((service, trace_id))
        if trace is not None:
            for content, own_id in trace.aliases:
                if content == content_id:
                    return own_id
        return content_id

    def _of(self, service: str, trace_id: str, now_ns: int) -> _Trace:
        key = (service, trace_id)
        trace = self._traces.get(key)
        if trace is None:
            trace = self._traces[key] = _Trace(now_ns)
            self._forget(now_ns)
        return trace

    def _forget(self, now_ns: int) -> None:
        traces = self._traces
        while len(traces) > self._most or next(iter(traces.values())).since_ns < now_ns - self._age_ns:
            self._drop_oldest()

    def _weigh(self, trace: _Trace) -> None:
        self._add(trace, trace.weigh() - trace.weight)

    def _add(self, trace: _Trace, weight: int) -> None:
        trace.weight += weight
        self._weight += weight
        while self._weight > self._most_bytes and len(self._traces) > 1:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, oldest = self._traces.popitem(last=False)
        self._weight -= oldest.weight
        oldest.weight = 0  # whoever still holds it weighs it in vain


class Family:
    """The spans of one body, from each of which the way up to its request can be gone."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._parents: dict[tuple[str, str], str | None] = {}
        self._requests: dict[tuple[str, str], Request] = {}
        for span in spans:
            self._parents[span.trace_id, span.span_id] = span.parent_id
            if span.is_entry:
                self._requests[span.trace_id, span.span_id] = Request.of(span)

    def request_above(self, trace_id: str, span_id: str) -> Request | None:
        """The nearest request at or above a span, as far as the body has the spans between."""
        at: str | None = span_id
        for _ in range(_MOST_STEPS):  # parents may go round in a circle
            if at is None:
                return None
            if (request := self._requests.get((trace_id, at))) is not None:
                return request
            at = self._parents.get((trace_id, at))
        return None

    def own(self, span: Span) -> Request:
        """The request that a span is itself."""
        return self._requests[span.trace_id, span.span_id]


def nearest(requests: Sequence[Request], span_id: str | None, time_ns: int) -> Request | None:
    """Of the requests of a trace the one that something belongs to; None where it might be of several."""
    for one in requests:
        if one.span_id == span_id:
            return one
    covering = [one for one in requests if one.covers(time_ns)]
    if covering:
        return min(covering, key=lambda one: one.end_ns - one.start_ns)
    return requests[0] if len(requests) == 1 else None


def renamed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes under today's names; where both are there, today's wins."""
    if _RENAMED.keys().isdisjoint(attributes) and "http.target" not in attributes:
        return dict(attributes)
    found = {_RENAMED.get(key, key): value for key, value in attributes.items()}
    found.update((key, value) for key, value in attributes.items() if key not in _RENAMED)
    target = found.pop("http.target", None)
    if isinstance(target, str):
        path, mark, query = target.partition("?")
        found.setdefault(semconv.URL_PATH, path)
        if mark:
            found.setdefault(semconv.URL_QUERY, query)
    return found


def status_in(attributes: Mapping[str, Any]) -> int | None:
    """The status that a request was answered with; some write it as a text."""
    status = attributes.get(semconv.HTTP_STATUS)
    if isinstance(status, str) and len(status) == 3 and status.isascii() and status.isdigit():
        status = int(status)
    return status if type(status) is int and 100 <= status <= 599 else None


def _short(value: Any) -> Any:
    return value[:_MOST_OF_A_VALUE] if isinstance(value, str) else value if isinstance(value, int | float) else None
