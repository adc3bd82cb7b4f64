"""A proxy that sends every request several times, as a sender does whose answers were lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.waiting import eventually

_KEPT = ("content-type", "content-encoding", "authorization")


@contextmanager
def repeating(target: str, times: int) -> Iterator[str]:
    """The address of a proxy before `target`; each answer is that to the last of the `times` tries."""

    async def forward(request: Request) -> Response:
        body = await request.body()
        headers = {name: request.headers[name] for name in _KEPT if name in request.headers}
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            for _ in range(times):
                answer = await client.post(target + request.url.path, content=body, headers=headers)
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    app = Starlette(routes=[Route("/{path:path}", forward, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started, 20)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
