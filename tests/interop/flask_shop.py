"""A shop in Flask, which knows nothing of tocsin."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from flask import Flask, Response

app = Flask("shop")


@app.get("/pid")
def pid() -> str:
    return str(os.getpid())


@app.get("/orders/<int:number>")
def order(number: int) -> str:
    raise LookupError(f"no order in {os.getpid()}")


@app.get("/unavailable")
def unavailable() -> tuple[str, int]:
    return "later", 503


@app.get("/stream")
def stream() -> Response:
    def rows() -> Iterator[str]:
        yield "a"
        raise KeyError("row")

    return Response(rows())


@app.get("/slow")
def slow() -> str:
    time.sleep(3)
    return "done"
