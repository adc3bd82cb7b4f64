"""A tocsin server as a sink: lines travel as OpenTelemetry log records, and stay here until it has them."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tocsin import clock, semconv
from tocsin.contained import contained, failures, note
from tocsin.exporter import decode as decoding
from tocsin.exporter import facts
from tocsin.exporter import spool as spooling
from tocsin.exporter.sink import Portion
from tocsin.exporter.spool import Line
from tocsin.failures import ServerRefuses, StoreAway
from tocsin.model import ErrorRecord, Instance
from tocsin.settings import Settings
from tocsin.text import clean, one_line
from tocsin.wire import TOTAL_S, Answer, Unanswered, Wire

LOGS: Final = "/v1/logs"

_BEAT_WITHIN_S = 3.0
_KINDS = ("error", "amend", "repeats", "instance", *facts.KINDS)
_OF_THE_DATA = (400, 413, 415)
_REFUSED_PAUSES_S = (2.0, 5.0, 10.0, 30.0, 60.0)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Ship:
    """
    The server that `TOCSIN_ENDPOINT` names; the standard library is all it needs.

    How far a segment was acknowledged stands in a small file beside it. When an answer is lost the lines
    are sent again: each has an id that is the same on every try, and the server counts it once.

    Args:
        folder: the spool folder, where lines are set aside that the server refuses.
        within_s: the longest that one request may take in all.
    """

    beats_every_s: float | None = 60.0
    first_beat_s: float = 1.0  # a program that ends sooner tells only of its errors

    def __init__(self, settings: Settings, folder: Path, *, within_s: float = TOTAL_S) -> None:
        self._settings = settings
        self._folder = folder
        self._within_s = within_s
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "User-Agent": "tocsin"}
        if token := settings.ingest_token or settings.token:
            headers["Authorization"] = f"Bearer {token}"
        self._wire = Wire(settings.endpoint or "", headers=headers)
        self.name = f"the server {self._wire.address}"
        self._refused = 0  # in a row
        self._said: list[str] = []
        self._is_swept = False

    def position(self, segment: str) -> int:
        """Up to which byte the server is known to have a segment."""
        return spooling.acknowledged(self._folder, segment)

    def put(self, portion: Portion) -> list[str]:
        """Send some lines; a request that is refused is split until the bad line is alone, which is set aside."""
        records = [record for line in portion.lines if (record := self._record(line, portion)) is not None]
        if records:
            self._deliver(portion, records, portion.instance)
        if not records or records[-1].line.end < portion.end:
            self._acknowledge(portion, portion.end)
        if not self._is_swept:
            self._is_swept = True
            with contained("sweeping the spool"):
                spooling.sweep(self._folder)
        said, self._said = self._said, []
        return said

    def report(self, instance: Instance) -> None:
        """Tell how a process is."""
        if problem := self._send([], instance, within_s=_BEAT_WITHIN_S):
            raise self._refusal(problem)

    def greet(self) -> datetime | None:
        """
        Send nothing, to see whether the server would take something.

        Returns:
            Its time to the second, if it says it.

        Raises:
            StoreAway: it does not answer.
            ServerRefuses: it would take nothing, and why.
        """
        answer = self._ask([], None, self._within_s)
        if problem := self._problem(answer):
            raise self._refusal(problem)
        return _date(answer.headers.get("date", ""))

    def is_told_by_others(self) -> bool:
        """Whether the server hears of this process from somebody else: a server far away cannot."""
        return False

    def rest(self) -> None:
        """The connection may stay: the server closes it when it likes."""

    def forget(self, segment: str) -> None:
        """What is known of a segment goes with its file."""

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()

    def _record(self, line: Line, portion: Portion) -> _Record | None:
        content = line.content
        if content is None:
            self._set_aside(line, "the line cannot be read")
            return None
        if content.get("kind") not in _KINDS:
            return None
        text = line.raw.decode("utf-8", "backslashreplace").rstrip("\n")
        try:
            if content["kind"] == "repeats" and "id" not in content:
                text = _encode({**content, "id": _id_of(portion.segment, line.end)})
            elif content["kind"] == "error" and not content.get("door"):
                text = _with_source(content, text)
            return _Record(line, _resource_of(content, portion), _log_record(content, text))
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            self._set_aside(line, f"{type(problem).__name__}: {problem}")
            return None

    def _deliver(self, portion: Portion, records: Sequence[_Record], instance: Instance | None) -> None:
        problem = self._send(records, instance)
        if problem is None:
            self._acknowledge(portion, records[-1].line.end)
            self._tell(portion, records)
        elif instance is not None:  # it may be what is refused
            self._deliver(portion, records, None)
        elif len(records) > 1:
            middle = len(records) // 2
            self._deliver(portion, records[:middle], None)
            self._deliver(portion, records[middle:], None)
        else:
            self._give_up(records[0], problem)
            self._acknowledge(portion, records[0].line.end)

    def _give_up(self, record: _Record, problem: str) -> None:
        """Set a line aside that the server refuses; but who refuses everything is no server of ours."""
        if also := self._send([], None):
            raise self._refusal(also)
        note("sending an error that the server refuses", ValueError(problem))
        spooling.set_aside(self._folder, record.line.raw, problem)

    def _set_aside(self, line: Line, why: str) -> None:
        failures["reading a spool line"] += 1
        spooling.set_aside(self._folder, line.raw, why)

    def _acknowledge(self, portion: Portion, position: int) -> None:
        with contained("noting what the server has"):
            spooling.acknowledge(self._folder, portion.segment, position)

    def _tell(self, portion: Portion, records: Sequence[_Record]) -> None:
        """A line for each error, as far as it can be said here: the server numbers the groups."""
        for record in records:
            content = record.line.content or {}
            with contained("saying what was sent"):
                error = decoding.decode(
                    {**content, "door": True},  # no file is read for such a one
                    portion.source,
                    own_categories=self._settings.categories,
                    capture_4xx=self._settings.capture_4xx,
                )
                if isinstance(error, ErrorRecord):
                    self._said.append(f"{error.severity.upper()} {error.category} {one_line(error.title)}")

    def _send(self, records: Sequence[_Record], instance: Instance | None, within_s: float | None = None) -> str | None:
        """
        Send, and tell from the answer what is to be done (OTLP/HTTP, *Response*).

        Returns:
            None when the server has all of it; else why it refuses some of it, which it always will.

        Raises:
            StoreAway: to be sent again later.
        """
        found = self._problem(self._ask(records, instance, within_s or self._within_s))
        self._refused = 0
        return found

    def _ask(self, records: Sequence[_Record], instance: Instance | None, within_s: float) -> Answer:
        body = gzip.compress(_export(records, instance).encode("utf-8"), compresslevel=4, mtime=0)
        try:
            return self._wire.request("POST", LOGS, body, within_s=within_s)
        except Unanswered as problem:
            raise StoreAway(str(problem)) from None

    def _problem(self, answer: Answer) -> str | None:
        status = answer.status
        where = f"{self._wire.address}{LOGS}"
        if status == 200:
            rejected, why = self._result(answer, where)
            if rejected:
                failures["sending: left out by the server"] += rejected
            elif why:
                note("sending errors: the server warns, which", ValueError(why))
            return f"the server leaves it out: {why}" if rejected else None
        if status in _OF_THE_DATA:
            return f"the server answers {status}: {_said_in(answer)}"
        if status in (401, 403):
            held = "TOCSIN_INGEST_TOKEN" if self._settings.ingest_token else "TOCSIN_TOKEN"
            has_one = self._settings.ingest_token or self._settings.token
            wants = f"does not take this {held}" if has_one else "wants a token"
            raise self._refusal(f"it answers {status}: it {wants}; set TOCSIN_INGEST_TOKEN to the server's")
        if status == 429 or status >= 500 or status == 408:
            raise StoreAway(f"{where} answers {status}", pause_s=_retry_after(answer))
        to = f", to go to {one_line(clean(answer.headers['location']), 100)}" if "location" in answer.headers else ""
        raise self._refusal(f"this is no tocsin server: {where} answers {status}{to}; put TOCSIN_ENDPOINT right")

    def _result(self, answer: Answer, where: str) -> tuple[int, str]:
        """How many records were left out, and what is said of it, by an ``ExportLogsServiceResponse`` in JSON."""
        try:
            content: Any = json.loads(answer.body) if answer.is_json else None
            partial = {} if content == {} else content["partialSuccess"]
            rejected = int(partial.get("rejectedLogRecords") or 0)
            return rejected, one_line(clean(str(partial.get("errorMessage") or ""), 300))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._refusal(
                f"this is no tocsin server: {where} answers 200, but not as one; put TOCSIN_ENDPOINT right"
            ) from None

    def _refusal(self, problem: str) -> ServerRefuses:
        pause_s = _REFUSED_PAUSES_S[min(self._refused, len(_REFUSED_PAUSES_S) - 1)]
        self._refused += 1
        return ServerRefuses(problem, pause_s=pause_s)


@dataclass(frozen=True, slots=True)
class _Record:
    line: Line
    resource: Mapping[str, Any]
    log_record: Mapping[str, Any]


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _export(records: Sequence[_Record], instance: Instance | None) -> str:
    """An ``ExportLogsServiceRequest`` in JSON; neighbours with the same resource share it."""
    now_ns = clock.now_ns()
    by_resource: list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = []
    for record in records:
        if not by_resource or by_resource[-1][0] != record.resource:
            by_resource.append((record.resource, []))
        by_resource[-1][1].append(record.log_record)
    if instance is not None:
        line = {"time_unix_nano": now_ns, **_instance_line(instance)}
        by_resource.append((_resource_of_instance(instance), [_log_record(line, _encode(line))]))
    return _encode(
        {
            "resourceLogs": [
                {
                    "resource": {"attributes": _attributes({**resource, semconv.SENT: str(now_ns)})},
                    "scopeLogs": [{"scope": {"name": "tocsin"}, "logRecords": log_records}],
                }
                for resource, log_records in by_resource
            ]
        }
    )


def _log_record(content: Mapping[str, Any], line: str) -> dict[str, Any]:
    """
    A line as a log record; all that counts is in one attribute, the rest is for other eyes on the way.

    Source: OTLP/JSON, where 64-bit integers are texts and ids are hexadecimal.
    """
    kind = content["kind"]
    time_ns = content.get("time_unix_nano") or content.get("time_ns") or 0
    record: dict[str, Any] = {
        "timeUnixNano": str(int(time_ns)),
        "eventName": semconv.EVENT_EXCEPTION if kind == "error" else f"tocsin.{kind}",
        "attributes": _attributes({semconv.LINE: line}),
    }
    if kind == "error":
        record["severityNumber"] = int(content["severity_number"])
        record["body"] = {"stringValue": str(content["body"])}
    for name, key in (("traceId", "trace_id"), ("spanId", "span_id")):
        if isinstance(value := content.get(key), str):
            record[name] = value
    return record


def _with_source(content: Mapping[str, Any], text: str) -> str:
    """The line with the source around the team's own frames, which only this machine can read; else as it is."""
    attributes = content["attributes"]
    frames = attributes.get(semconv.FRAMES)
    if not isinstance(frames, list) or (shown := decoding.with_source(frames)) == frames:
        return text
    longer = _encode({**content, "attributes": {**attributes, semconv.FRAMES: shown}})
    return longer if len(longer) < spooling.LINE_BYTES else text


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in values.items() if value is not None]


def _any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"intValue": str(value)}
    return {"stringValue": str(value)}


def _resource_of(content: Mapping[str, Any], portion: Portion) -> Mapping[str, Any]:
    """Whose a line is: one that once came by HTTP says it itself, else its segment does."""
    if isinstance(own := content.get("resource"), dict):
        return own
    if portion.instance is not None:
        return _resource_of_instance(portion.instance)
    source = portion.source
    return _resource(source.service, source.environment, source.release, source.instance_id)


def _resource_of_instance(instance: Instance) -> dict[str, Any]:
    return {
        **_resource(instance.service, instance.environment, instance.release, instance.id),
        semconv.HOST_NAME: instance.host,
        semconv.PROCESS_PID: instance.pid,
        semconv.RUNTIME_VERSION: instance.python_version,
    }


def _resource(service: str, environment: str, release: str | None, instance_id: str | None) -> dict[str, Any]:
    return {
        semconv.SERVICE_NAME: service,
        semconv.DEPLOYMENT_ENVIRONMENT: environment,
        semconv.SERVICE_VERSION: release,
        semconv.SERVICE_INSTANCE_ID: instance_id,
    }


def _instance_line(instance: Instance) -> dict[str, Any]:
    """How a process is, as a line: the fields of `Instance`, its times in nanoseconds."""
    return {
        "v": spooling.VERSION,
        "kind": "instance",
        "id": instance.id,
        "service": instance.service,
        "environment": instance.environment,
        "release": instance.release,
        "host": instance.host,
        "pid": instance.pid,
        "started_at_ns": _ns(instance.started_at),
        "python_version": instance.python_version,
        "memory_bytes": instance.memory_bytes,
        "active_requests": instance.active_requests,
        "is_shutting_down": instance.is_shutting_down,
        "spool_bytes": instance.spool_bytes,
        "loop_lag_ms": instance.loop_lag_ms,
        "memory_limit_bytes": instance.memory_limit_bytes,
        "memory_trend": instance.memory_trend,
        "beats_every_s": instance.beats_every_s,
        "seen_at_ns": None if instance.seen_at is None else _ns(instance.seen_at),
        "lost": instance.lost,
        "is_alive": instance.is_alive,
        "ended_at_ns": None if instance.ended_at is None else _ns(instance.ended_at),
        "ended_how": instance.ended_how,
    }


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _id_of(segment: str, end: int) -> str:
    """The id of a line that has none: the same on every try, and of no other line (a UUID of version 8)."""
    text = hashlib.sha256(f"{segment}:{end}".encode()).hexdigest()
    return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-8{text[17:20]}-{text[20:32]}"


def _retry_after(answer: Answer) -> float | None:
    """How long a server asks us to wait, in seconds or as a date (RFC 9110, *Retry-After*)."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    moment = _date(value)
    return None if moment is None else max((moment - clock.now()).total_seconds(), 0.0)


def _date(text: str) -> datetime | None:
    """The moment that a header names; None for none."""
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  (dear, and rarely needed)

    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _said_in(answer: Answer) -> str:
    """What an answer says of itself: its message where it is JSON (a ``Status``), else its text."""
    text = answer.body.decode("utf-8", "replace")
    try:
        content = json.loads(text) if answer.is_json else {}
        text = str(content.get("message") or content.get("error") or text)
    except (ValueError, AttributeError, RecursionError):
        pass
    return one_line(clean(text, 300)) or "nothing more"
