"""The whole server within a test's own process: store, door, drain, alerts and API, on a port of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tests.waiting import eventually
from tocsin.serve import running
from tocsin.settings import Settings


@contextmanager
def open_house(settings: Settings) -> Iterator[str]:
    """A server at work on these settings; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        servers: list[uvicorn.Server] = []

        async def serve() -> None:
            async with running(settings, base_url=address) as app:
                server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
                servers.append(server)
                await server.serve(sockets=[listening])

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        try:
            eventually(lambda: servers and servers[0].started, 20)
            yield address
        finally:
            if servers:
                servers[0].should_exit = True
            thread.join(20)
