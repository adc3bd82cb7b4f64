"""A service whose event loop a handler blocks: one error, which shows the line; none where the machine is at fault."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import Service, rows_of
from tests.waiting import eventually

APP = """
import os
import time

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tocsin.instrumentation import loop


async def checkout(request):
    time.sleep(3)
    return PlainTextResponse("done")


async def pid(request):
    with open("pid", "w") as file:
        file.write(str(os.getpid()))
    is_asked = any(run.has_answered for run in loop._runs.values())
    return PlainTextResponse("done", 200 if is_asked else 202)


app = Starlette(routes=[Route("/checkout/{id}", checkout), Route("/pid", pid)])
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_handler_that_sleeps_three_seconds_is_shown_with_its_line(tmp_path: Path, sqlite_url: str, kind: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    uvicorn = ("--", "uvicorn", "app:app", "--port", "0", "--no-access-log", "--loop", kind)
    with Service(tmp_path, sqlite_url, *uvicorn) as service:
        eventually(lambda: service.get("/pid") == 200)
        assert service.get("/checkout/7") == 200
        service.wait_for(1)
        eventually(lambda: "blocked_s" in rows_of(sqlite_url)[0].context)

        stopped = int((tmp_path / "pid").read_text())
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(2.5)  # the machine is suspended, or has no time for it
        os.kill(stopped, signal.SIGCONT)
        assert service.get("/pid") == 200

    (row,) = rows_of(sqlite_url)
    assert row.message == "event loop blocked by app in checkout"
    assert [frame["text"] for frame in row.context["tocsin.frames"] if frame["in_app"]][-1] == "time.sleep(3)"
    assert row.context["http.route"] == "/checkout/{id}"
    assert row.count == 1
    assert 2 < row.context["blocked_s"] < 4
