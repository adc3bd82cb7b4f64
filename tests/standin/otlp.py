"""
A small, strict OTLP/HTTP receiver on loopback, which can be told to misbehave.

It reads each request by the official messages of OpenTelemetry, refuses what they do not know, and keeps what it took.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

Refuses = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a request is answered."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    content_type: str = "application/json"
    keeps: bool = False  #          what was sent is kept, whatever is answered
    after_s: float = 0.0  #         wait before the answer
    cut: bool = False  #            the connection is reset in the middle of the answer
    dripping: bool = False  #       a byte now and then, for ever
    hangs_up: bool = False  #       the connection is closed after the answer, without a word before
    refuses: Refuses | None = None  #  lines that make the whole request wrong (`status`), or are left out (200)


TAKES = Answer(keeps=True)
PAGE = Answer(body=b"<!doctype html><title>It works!</title>", content_type="text/html; charset=utf-8")


@dataclass
class Request:
    """One request as it came."""

    at: float  # monotonic
    headers: dict[str, str]
    lines: list[dict[str, Any]]
    resources: list[dict[str, Any]]
    message: ExportLogsServiceRequest
    connection: int  # which one, counted


class OtlpStandIn:
    """
    The receiver; `with` starts and ends it.

    Args:
        token: the only one that it takes; None: any, and none.
        certificate: of a TLS server: a file with certificate and key.
    """

    def __init__(self, *, token: str | None = None, certificate: str | None = None, port: int = 0) -> None:
        self.token = token
        self.requests: list[Request] = []
        self.lines: list[dict[str, Any]] = []  # what it took, in order, as often as it took it
        self.always: Answer = TAKES
        self._next: list[Answer] = []
        self._connections = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        stand_in = self

        class Handler(_Handler):
            standing_in = stand_in

        self._server = _Server(("127.0.0.1", port), Handler)
        scheme = "http"
        if certificate is not None:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self.address = f"{scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> OtlpStandIn:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def next(self, *answers: Answer) -> None:
        """How the next requests are answered, one each; then it goes on as `always` says."""
        self._next += answers

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind that it took."""
        return [line for line in self.lines if line["kind"] == kind]

    def messages(self) -> list[str]:
        """What the errors say that it took; each as often as it took it."""
        return [line["body"] for line in self.of_kind("error")]

    def connected(self) -> int:
        """Count one more connection."""
        with self._lock:
            self._connections += 1
            return self._connections

    def receive(self, request: Request) -> Answer:
        """Keep a request; how it is answered."""
        with self._lock:
            self.requests.append(request)
            answer = self._next.pop(0) if self._next else self.always
            if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
                return Answer(status=401, body=b'{"code": 16, "message": "the token is not known"}')
            refused = [line for line in request.lines if answer.refuses is not None and answer.refuses(line)]
            if answer.refuses is not None and answer.status != 200:
                if refused:
                    return answer
                self.lines += request.lines
                return TAKES
            if refused:
                self.lines += [line for line in request.lines if line not in refused]
                partial = {"rejectedLogRecords": str(len(refused)), "errorMessage": "a line is not what it should be"}
                return Answer(body=json.dumps({"partialSuccess": partial}).encode())
            if answer.keeps or answer.refuses is not None:
                self.lines += request.lines
            return answer

    def wait(self, seconds: float) -> bool:
        """Wait, but no longer than it lives; whether it has ended."""
        return self._closed.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no failure."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standing_in: OtlpStandIn

    def setup(self) -> None:
        super().setup()
        self.number = self.standing_in.connected()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            request = self._read(body)
        except (ValueError, json_format.ParseError, AssertionError, OSError) as problem:
            self._send(Answer(status=400, body=json.dumps({"code": 3, "message": str(problem)}).encode()))
            return
        self._send(self.standing_in.receive(request))

    def _read(self, body: bytes) -> Request:
        headers = {name.lower(): value for name, value in self.headers.items()}
        assert self.path == "/v1/logs", self.path
        assert headers["content-type"] == "application/json"
        assert headers["content-encoding"] == "gzip"
        message = json_format.Parse(_with_bytes(gzip.decompress(body)), ExportLogsServiceRequest())
        lines, resources = [], []
        for batch in message.resource_logs:
            resource = {one.key: _value(one.value) for one in batch.resource.attributes}
            assert abs(int(resource["tocsin.sent_unix_nano"]) - time.time_ns()) < 60e9
            for scope in batch.scope_logs:
                assert scope.scope.name == "tocsin"
                for record in scope.log_records:
                    (attribute,) = record.attributes
                    assert attribute.key == "tocsin.line"
                    lines.append(json.loads(attribute.value.string_value))
                    resources.append(resource)
        return Request(time.monotonic(), headers, lines, resources, message, self.number)

    def _send(self, answer: Answer) -> None:
        if answer.after_s and self.standing_in.wait(answer.after_s):
            return
        head = [f"HTTP/1.1 {answer.status} As told", f"Content-Type: {answer.content_type}"]
        head += [f"{name}: {value}" for name, value in answer.headers.items()]
        head += [f"Content-Length: {len(answer.body)}", "", ""]
        data = "\r\n".join(head).encode() + answer.body
        if answer.cut:
            self.wfile.write(data[: len(data) - 1])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif answer.dripping:
            for at in range(len(data) - 1):
                self.wfile.write(data[at : at + 1])
                if self.standing_in.wait(0.2):
                    break
        else:
            self.wfile.write(data)
            self.close_connection = self.close_connection or answer.hangs_up

    def log_message(self, *args: Any) -> None:
        """Nothing is logged."""


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


_HEX = {"traceId": re.compile("[0-9a-f]{32}"), "spanId": re.compile("[0-9a-f]{16}")}


def _with_bytes(text: bytes) -> bytes:
    """Ids are hexadecimal in OTLP's JSON, where the library reads all bytes as base64."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        for name, pattern in _HEX.items():
            if name in found:
                assert pattern.fullmatch(found[name]), found[name]
                found[name] = base64.b64encode(bytes.fromhex(found[name])).decode()
        return found

    return json.dumps(json.loads(text, object_hook=change)).encode()
