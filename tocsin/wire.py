"""HTTP to one server with the standard library alone: kept alive, checked, and with a bound on every step."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tocsin.failures import TocsinError

# `http.client` and `ssl` take longer to load than a service may need to start: they come with the first request.

if TYPE_CHECKING:
    import http.client
    import socket

CONNECT_S: Final = 5.0
READ_S: Final = 10.0
TOTAL_S: Final = 15.0

# Servers close what rests (uvicorn after 5 s by default), and an address may get another machine.
_IDLE_S = 4.0
_AGE_S = 60.0

_PIECE_BYTES = 64 * 2**10


class Unanswered(TocsinError):
    """No answer came: no connection, a certificate that is not trusted, a time that ran out, no HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said; names of headers in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_json(self) -> bool:
        """Whether it says that it is JSON."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


class Wire:
    """
    A connection to one server, made when it is needed; for one thread.

    The host's name is looked up at each new connection. A redirect is an answer like any other: it is not
    followed, so that no header goes to a server that nobody named. Proxies of the environment are not used.
    Certificates are checked against those of the system, or of ``SSL_CERT_FILE``.

    Args:
        base: ``https://host:port/path``; paths of requests are put behind it.
        headers: sent with each request.
        max_bytes: the longest answer that is read.
    """

    def __init__(self, base: str, *, headers: Mapping[str, str], max_bytes: int = 64 * 2**10) -> None:
        parts = urlsplit(base)
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port
        self._path = parts.path.rstrip("/")
        self._headers = dict(headers)
        self._max_bytes = max_bytes
        self._connection: http.client.HTTPConnection | None = None
        self._made = self._used = 0.0
        self._until = 0.0
        name = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"{parts.scheme}://{name}{f':{self._port}' if self._port else ''}{self._path}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        within_s: float = TOTAL_S,
    ) -> Answer:
        """
        Ask, and read the answer, whatever its status is.

        Args:
            within_s: for all of it, but for the look-up of the host's name.

        Raises:
            Unanswered: its text says why, and holds no header.
        """
        import http.client  # noqa: PLC0415

        self._until = time.monotonic() + within_s
        sent = self._headers | dict(headers or {})
        is_reused = self._is_fresh()
        try:
            try:
                return self._exchange(method, path, body, sent)
            except (ConnectionError, http.client.BadStatusLine):
                if not is_reused:
                    raise
                self.close()  # the server has closed it while it rested
                return self._exchange(method, path, body, sent)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            self.close()
            raise Unanswered(f"{self.address}: {_reason(problem)}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection; the next request makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _is_fresh(self) -> bool:
        now = time.monotonic()
        if self._connection is not None and (now - self._used > _IDLE_S or now - self._made > _AGE_S):
            self.close()
        return self._connection is not None

    def _exchange(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = self._connection or self._connect()
        self._bound(connection.sock)
        connection.putrequest(method, self._path + path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        is_cut = False
        try:
            connection.endheaders()
            for start in range(0, len(body or b""), _PIECE_BYTES):
                self._bound(connection.sock)
                connection.send((body or b"")[start : start + _PIECE_BYTES])
        except (BrokenPipeError, ConnectionResetError):
            is_cut = True  # a server may answer before it has read all, and close
        response = connection.getresponse()
        data = response.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:
            raise Unanswered(f"{self.address}: the answer is too long")
        if response.will_close or is_cut:
            self.close()
        self._used = time.monotonic()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, data)

    def _connect(self) -> http.client.HTTPConnection:
        import http.client  # noqa: PLC0415

        connection: http.client.HTTPConnection
        timeout_s = min(CONNECT_S, self._left())
        if self._is_tls:
            import ssl  # noqa: PLC0415

            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        connection.response_class = self._response  # type: ignore[assignment]  # it is only ever called
        self._connection = connection
        connection.connect()
        self._made = self._used = time.monotonic()
        return connection

    def _response(self, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
        import http.client  # noqa: PLC0415

        return http.client.HTTPResponse(_Bounded(sock, self._bound), **options)  # type: ignore[arg-type]

    def _bound(self, sock: socket.socket) -> None:
        """Let the next step take no longer than is left."""
        sock.settimeout(min(READ_S, self._left()))

    def _left(self) -> float:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        return left_s


class _Bounded:
    """
    A socket as `http.client.HTTPResponse` reads it, bounded before each read.

    A socket's own timeout begins anew with every byte: a byte a second would never end.
    """

    def __init__(self, sock: socket.socket, bound: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._bound = bound

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_BoundedFile(self._sock, self._bound))


class _BoundedFile(io.RawIOBase):
    def __init__(self, sock: socket.socket, bound: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._bound = bound
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open until it is read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._bound(self._sock)
        return self._file.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _reason(problem: Exception) -> str:
    """Why, in a line; nothing of what was sent, which `http.client` likes to quote."""
    match problem:
        case TimeoutError():
            return "no answer in time"
        case OSError():
            return problem.strerror or str(problem) or type(problem).__name__
        case ValueError():
            return "its address or the token has characters that cannot be sent"
        case _:
            return f"this is no HTTP, or it was cut off: {type(problem).__name__}"
