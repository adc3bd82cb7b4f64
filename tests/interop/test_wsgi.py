"""Flask, Django and applications of no framework, served by real servers, and nothing of tocsin in their code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.servers import Server, told
from tests.processes import rows_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
INIT = "import tocsin; tocsin.init(service='shop')"

FLASK = "tests.interop.flask_shop"
DJANGO = "tests.interop.django_shop"
PLAIN = "tests.interop.plain_shop"


def ask_all(server: Server) -> None:
    server.get("/orders/7?token=geheim77", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    assert server.get("/unavailable") == 503
    server.get("/stream")
    server.get("/nowhere")
    server.get("/orders/8")  # and at once


def check(server: Server, route: str | None, mechanism: str = "wsgi") -> None:
    """Each failure is stored once and with its request, also the last one before the end."""
    status = "GET /unavailable" if route is None or route.startswith("/") else "GET unavailable"
    assert told(server.database_url) == {
        ("LookupError", mechanism, "high"): 2,
        (f"{status} answered 503", mechanism, "high"): 1,
        ("KeyError", mechanism, "high"): 1,
    }, server.said()
    row = next(row for row in rows_of(server.database_url) if row.trace_id == TRACE)
    assert row.context.get("http.route") == route
    assert (row.context["url.path"], row.context["client.address"], row.handled) == ("/orders/7", "127.0.0.1", False)
    assert "geheim77" not in str(row.context)


def test_django_s_own_server(sqlite_url: str, tmp_path: Path) -> None:
    command = f"python -m {DJANGO} runserver --noreload 127.0.0.1:PORT"
    with Server(tmp_path, sqlite_url, command) as server:
        ask_all(server)

        server.end()

        check(server, "orders/<int:number>")


@pytest.mark.gate
@pytest.mark.parametrize(
    ("command", "route"),
    [
        (f"gunicorn -b 127.0.0.1:PORT {FLASK}:app", "/orders/<int:number>"),
        (f"gunicorn -b 127.0.0.1:PORT --threads 4 {FLASK}:app", "/orders/<int:number>"),
        (f"flask --app {FLASK}:app run --port PORT", "/orders/<int:number>"),
        (f"gunicorn -b 127.0.0.1:PORT {DJANGO}:application", "orders/<int:number>"),
        (f"gunicorn -b 127.0.0.1:PORT --threads 4 --preload {DJANGO}:application", "orders/<int:number>"),
        (f"gunicorn -b 127.0.0.1:PORT {PLAIN}:application", None),
        (f"gunicorn -b 127.0.0.1:PORT --threads 4 {PLAIN}:application", None),
        (f"python -m {PLAIN} PORT", None),
    ],
)
def test_servers_and_frameworks(command: str, route: str | None, sqlite_url: str, tmp_path: Path) -> None:
    with Server(tmp_path, sqlite_url, command) as server:
        ask_all(server)

        server.end()

        check(server, route)


@pytest.mark.gate
def test_django_by_asgi(sqlite_url: str, tmp_path: Path) -> None:
    with Server(tmp_path, sqlite_url, f"uvicorn --port PORT {DJANGO}:asgi_application") as server:
        ask_all(server)

        server.end()

        check(server, "orders/<int:number>", "asgi")


@pytest.mark.gate
@pytest.mark.parametrize("when", ["early", "late"])
def test_tocsin_in_the_program_s_own_code(when: str, sqlite_url: str, tmp_path: Path) -> None:
    """Before or after the framework is imported."""
    own = f"from {FLASK} import app"
    lines = [INIT, own] if when == "early" else [own, INIT]
    (tmp_path / "own.py").write_text("\n".join(lines))
    command = f"{tmp_path}/own.py"
    with Server(tmp_path, sqlite_url, "-b 127.0.0.1:PORT own:app", run=("-m", "gunicorn")) as server:
        assert command
        ask_all(server)

        server.end()

        check(server, "/orders/<int:number>")
