"""Shops of no framework, by WSGI and by ASGI: ``python -m tests.interop.plain_shop PORT``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import make_server


def application(environ: Any, start_response: Any) -> Iterable[bytes]:
    place = environ["PATH_INFO"]
    if place.startswith("/orders/"):
        raise LookupError(f"no order in {os.getpid()}")
    start_response("503 Later" if place == "/unavailable" else "200 OK", [("Content-Type", "text/plain")])
    yield str(os.getpid()).encode()
    if place == "/stream":
        raise KeyError("row")


async def asgi_application(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    if scope["path"].startswith("/orders/"):
        raise LookupError(f"no order in {os.getpid()}")
    status = 503 if scope["path"] == "/unavailable" else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[1]), application) as server:
        server.serve_forever()
