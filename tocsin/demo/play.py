"""`tocsin demo`: a stage in a temporary folder, a server and a shop on it, and a clean end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from tocsin.demo.client import Client
from tocsin.demo.processes import Child
from tocsin.demo.story import DemoFailed, Story, Teller
from tocsin.failures import TocsinError
from tocsin.terminal import painted

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(TocsinError):
    """Somebody wants the demo to end."""


def play(*, seconds: float | None = None, port: int | None = None) -> int:
    """
    Play the demo until Ctrl-C.

    Everything lies in a temporary folder that goes with it: no database, spool or setting of the user
    is read or written.

    Args:
        seconds: end by itself after this long; the first error and its alert are told in any case.
        port: of the server (default: one that is free).

    Returns:
        0, or 1 when the demo could not be played.
    """
    end = None if seconds is None else time.monotonic() + seconds
    signals = _Signals()
    with signals.raising(), ExitStack() as stage:
        try:
            story = stage.enter_context(_on_stage(port, end, signals))
            story.tell()
            story.stay()
        except DemoFailed as problem:
            print(f"tocsin demo: {problem}", file=sys.stderr)
            return 1
        except (_Stopped, KeyboardInterrupt):
            print()
        finally:
            _ignore_signals()
        print(painted("The demo ends, and takes its folder with it.", "dim"), flush=True)
    return 0


class _Signals:
    """
    SIGTERM and a closed terminal end the demo as Ctrl-C does; a second wish does not disturb the end.

    While something starts that must be ended again (`starting`), a signal waits: nobody would end it otherwise.
    """

    def __init__(self) -> None:
        self._is_starting = False
        self._is_wanted = False

    @contextmanager
    def raising(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in _ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def starting(self) -> Iterator[None]:
        self._is_starting = True
        try:
            yield
        finally:
            self._is_starting = False
        if self._is_wanted:
            raise _Stopped

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_wanted = True
        if not self._is_starting:
            raise _Stopped


def _ignore_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _on_stage(port: int | None, end: float | None, signals: _Signals) -> Iterator[Story]:
    """Folder, server and shop; what was opened last is closed first."""
    server_port = _free_port() if port is None else _usable_port(port)
    with ExitStack() as stage:
        with signals.starting():
            folder = Path(stage.enter_context(tempfile.TemporaryDirectory(prefix="tocsin-demo-")))
        token = secrets.token_urlsafe(24)
        environ = _environment(folder, token)
        shutil.copy(Path(__file__).with_name("shop.py"), folder / "shop.py")
        teller = Teller()
        with signals.starting():
            server = Child(
                "server",
                ["tocsin", "serve", "--host", "127.0.0.1", "--port", str(server_port)],
                folder=folder,
                environ=environ,
                hear=teller.hear_server,
            )
            stage.callback(server.stop)
        shop_port = _free_port()
        uvicorn = (sys.executable, "-m", "uvicorn", "--port", str(shop_port), "--log-level", "critical")
        with signals.starting():
            shop = Child(
                "shop",
                ["tocsin", "run", "--", *uvicorn, "shop:app"],
                folder=folder,
                environ=environ | {"TOCSIN_SERVICE": "shop"},
                hear=teller.hear_shop,
            )
            stage.callback(shop.stop)
        stage.callback(server.ask_to_stop)  # both at once, then each is waited for
        yield Story(
            server=server,
            shop=shop,
            api=Client(f"http://127.0.0.1:{server_port}", token),
            customer=Client(f"http://127.0.0.1:{shop_port}"),
            database_url=environ["TOCSIN_DATABASE_URL"],
            teller=teller,
            end=end,
        )


def _environment(folder: Path, token: str) -> dict[str, str]:
    """The environment of both children, with nothing of the user's own settings in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))}
    return kept | {
        "TOCSIN_DATABASE_URL": f"sqlite:///{folder / 'tocsin.db'}",
        "TOCSIN_SPOOL_DIR": str(folder / "spool"),
        "TOCSIN_TOKEN": token,
        "TOCSIN_ENVIRONMENT": "production",
        "TOCSIN_RELEASE": "2.4.0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _usable_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as problem:
            raise DemoFailed(f"port {port} cannot be used ({problem.strerror}); give another with --port") from None
    return port
