"""The story that `tocsin demo` tells: one act for each way to fail, and what people see of it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tocsin import clock
from tocsin.demo.children import Child
from tocsin.failures import TocsinError
from tocsin.store import open_store
from tocsin.store.credentials import make_code
from tocsin.terminal import painted, safe

_START_WITHIN_S = 45.0
_SEEN_WITHIN_S = 10.0

_STORED = re.compile(r"(CRITICAL|HIGH|MEDIUM|LOW) \S+ #\d+ ")
"""A stored error, as it stands on the stderr of the service that it happened in."""


class DemoFailed(TocsinError):
    """The demo cannot go on; its text says why."""


class _Stopped(TocsinError):
    """Somebody wants the demo to end."""


def play(*, seconds: float | None = None, port: int | None = None) -> int:
    """
    Play the demo until Ctrl-C.

    Everything lies in a temporary folder that goes with it: no database, spool or setting of the user
    is read or written.

    Args:
        seconds: end by itself after this long; the first error and its alert are always told.
        port: of the server (default: one that is free).

    Returns:
        0, or 1 when the demo could not be played.
    """
    end = None if seconds is None else time.monotonic() + seconds
    with _signals_raise(), ExitStack() as stage:
        try:
            demo = stage.enter_context(_on_stage(port, end))
            demo.tell()
            demo.stay()
        except DemoFailed as problem:
            print(f"tocsin demo: {problem}", file=sys.stderr)
            return 1
        except (_Stopped, KeyboardInterrupt):
            print()
        finally:
            _ignore_signals()
            print(painted("The demo ends; its folder is removed.", "dim"), flush=True)
    return 0


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does; a second wish does not disturb the end."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = {name: signal.signal(name, stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _ignore_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)


@contextmanager
def _on_stage(port: int | None, end: float | None) -> Iterator[Demo]:
    """Folder, server and shop; closed in the reverse order."""
    server_port = _free_port() if port is None else _checked_port(port)
    with ExitStack() as stage:
        folder = Path(stage.enter_context(tempfile.TemporaryDirectory(prefix="tocsin-demo-")))
        token = secrets.token_urlsafe(24)
        environ = _environment(folder, token)
        shutil.copy(Path(__file__).with_name("shop.py"), folder / "shop.py")
        say = _Teller()
        server = Child(
            "tocsin",
            ["tocsin", "serve", "--host", "127.0.0.1", "--port", str(server_port)],
            folder=folder,
            environ=environ | {"TOCSIN_SERVICE": "tocsin"},
            hear=say.server_line,
        )
        stage.callback(server.stop)
        shop_port = _free_port()
        shop = Child(
            "shop",
            ["tocsin", "run", "--", "uvicorn", "shop:app", "--port", str(shop_port), "--log-level", "critical"],
            folder=folder,
            environ=environ,
            hear=say.shop_line,
        )
        stage.callback(shop.stop)
        stage.callback(server.ask_to_stop)  # both at once, then each is waited for
        yield Demo(
            server=server,
            shop=shop,
            api=_Client(f"http://127.0.0.1:{server_port}", token),
            customer=_Client(f"http://127.0.0.1:{shop_port}"),
            database_url=environ["TOCSIN_DATABASE_URL"],
            end=end,
        )


def _environment(folder: Path, token: str) -> dict[str, str]:
    """The environment of both children, with nothing of the user's own settings in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))}
    return kept | {
        "TOCSIN_DATABASE_URL": f"sqlite:///{folder / 'tocsin.db'}",
        "TOCSIN_SPOOL_DIR": str(folder / "spool"),
        "TOCSIN_TOKEN": token,
        "TOCSIN_SERVICE": "shop",
        "TOCSIN_ENVIRONMENT": "production",
        "TOCSIN_RELEASE": "2.4.0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _checked_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "give 1 to 65535"
            raise DemoFailed(f"port {port} cannot be used: {reason}; give another with --port") from None
    return port


class _Teller:
    """Prints what the children say, each line marked with who says it."""

    def server_line(self, line: str) -> None:
        if line.strip():
            print(f"  {painted('tocsin |', 'yellow')} {safe(line)}", flush=True)

    def shop_line(self, line: str) -> None:
        if _STORED.match(line) or line.startswith("tocsin: "):
            print(f"  {painted('shop   |', 'red')} {safe(line)}", flush=True)


class _Client:
    """HTTP, as far as the demo needs it; no proxy of the user stands between."""

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        self.token = token
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer (None for another body)."""
        request = urllib.request.Request(self.address + path, method=method)  # noqa: S310
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        if body is not None:
            request.add_header("Content-Type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            with self._open(request, timeout=10) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, _json(refused.read())

    def is_up(self, path: str) -> bool:
        try:
            return self.call("GET", path)[0] == 200
        except OSError:
            return False


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


class Demo:
    """The demo while it plays."""

    def __init__(
        self, *, server: Child, shop: Child, api: _Client, customer: _Client, database_url: str, end: float | None
    ) -> None:
        self._server = server
        self._shop = shop
        self._api = api
        self._customer = customer
        self._database_url = database_url
        self._end = end

    def tell(self) -> None:
        """The whole story, as far as there is time for it."""
        print(painted("tocsin demo: a shop that fails, and what you hear of it.", "bold"), flush=True)
        self._wait_until_up()
        self._print_addresses()
        first = self._first_error()
        for act in (self._other_ways, self._what_is_no_error, self._storm):
            if self._has_time(4):
                act()
        if first is not None and self._has_time(2):
            self._resolve_and_regress(first)
        self._print_addresses()

    def stay(self) -> None:
        """Keep server and shop up until the time is over or somebody has seen enough."""
        if self._end is None:
            print("\nEverything stays up until Ctrl-C.", flush=True)
        while self._end is None or time.monotonic() < self._end:
            for child in (self._server, self._shop):
                if not child.is_alive:
                    raise DemoFailed(self._death(child))
            time.sleep(0.2 if self._end is None else max(0.0, min(0.2, self._end - time.monotonic())))

    # The acts.

    def _first_error(self) -> int | None:
        self._title("A customer without a phone number orders tea; create_order has not thought of that.")
        number = self._provoke("POST", "/orders", {"customer": {"name": "Anna"}, "product": "tea"})
        if number is None:
            raise DemoFailed("the error did not reach the database; this is a fault in tocsin")
        self._say(f"That line is the service's own stderr. The error's group is #{number}:")
        self._show_group(number)
        if not self._server.wait_for(_names(number), times=1, timeout_s=_SEEN_WITHIN_S):
            raise DemoFailed("no alert came; this is a fault in tocsin")
        self._say("Above is the alert, as the console channel prints it; Telegram gets the same, with buttons.")
        return number

    def _other_ways(self) -> None:
        ways = (
            ("POST", "/leads", "The CRM does not answer in time: a third party's failure has its own category."),
            ("POST", "/orders/7/refund", "Caught, and logged by logger.exception: the customer saw a 202."),
            ("POST", "/orders/7/pay", "A background task fails after the answer has gone out."),
            ("POST", "/stock/sync", "An asyncio task fails, and nobody asks for its result."),
            ("POST", "/prices", "A thread fails."),
        )
        for method, path, title in ways:
            if not self._has_time(2.5):
                return
            self._title(title)
            self._provoke(method, path)
            self._pause(1.2)

    def _what_is_no_error(self) -> None:
        before = self._total()
        self._title("Twenty people ask for orders that do not exist: answered 404, expected, not an error.")
        for order_id in range(9_000, 9_020):
            self._customer.call("GET", f"/orders/{order_id}")
        self._pause(0.6)
        self._say(f"Errors stored before: {before}, and after: {self._total()}.")

    def _storm(self) -> None:
        self._title("A bug on a busy page: 300 times the same error, as fast as the shop can fail.")
        number = self._provoke("GET", "/cart")
        if number is None:
            return
        for _ in range(299):
            self._customer.call("GET", "/cart")
        self._until(lambda: self._group(number).get("count") == 300, 5)
        self._say("One group, every error counted, one message:")
        self._show_group(number)
        self._pause(1)

    def _resolve_and_regress(self, number: int) -> None:
        self._title(f"Somebody mends it and resolves #{number}:")
        print(f"  $ {self._curl(f'/api/debug/groups/{number}/resolve', 'POST')}")
        status, answer = self._api.call("POST", f"/api/debug/groups/{number}/resolve")
        if status != 200:
            raise DemoFailed(f"resolve answered {status}: {answer}")
        self._show_group(number)
        self._pause(1.2)
        self._title("It was not mended after all. The same error again is a regression, and rings again:")
        heard = self._server.count(_names(number))
        self._provoke("POST", "/orders", {"customer": {"name": "Boris"}, "product": "tea"})
        self._server.wait_for(_names(number), times=heard + 1, timeout_s=_SEEN_WITHIN_S)
        self._show_group(number)

    # What the acts are made of.

    def _provoke(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> int | None:
        """A call that makes the shop fail; the number of the group, once the error is stored."""
        stored = self._shop.count(_is_stored)
        status, _ = self._customer.call(method, path, body)
        print(f"  $ {method} {path}  ->  {status}", flush=True)
        if not self._shop.wait_for(_is_stored, times=stored + 1, timeout_s=_SEEN_WITHIN_S):
            if not self._shop.is_alive:
                raise DemoFailed(self._death(self._shop))
            return None
        newest = self._api.call("GET", "/api/debug/errors?limit=1")[1]["errors"][0]
        return int(newest["group"])

    def _group(self, number: int) -> dict[str, Any]:
        group: dict[str, Any] = self._api.call("GET", f"/api/debug/groups/{number}")[1]["group"]
        return group

    def _show_group(self, number: int) -> None:
        group = self._group(number)
        told = ", ".join(
            f"{name} {safe(group[name])}"
            for name in ("status", "severity", "category", "count", "culprit")
            if group[name]
        )
        print(f"  {painted(f'#{number}', 'bold')} {safe(group['title'])}: {told}", flush=True)

    def _total(self) -> int:
        return int(self._api.call("GET", "/api/debug/errors/stats?hours=1")[1]["stats"]["total"])

    def _wait_until_up(self) -> None:
        for child, client, path in ((self._server, self._api, "/readyz"), (self._shop, self._customer, "/")):
            if not self._until(lambda client=client, path=path: client.is_up(path), _START_WITHIN_S, child):  # type: ignore[misc]
                raise DemoFailed(self._death(child))

    def _until(self, is_so: Callable[[], bool], timeout_s: float, child: Child | None = None) -> bool:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline or (child and not child.is_alive):
                return False
            time.sleep(0.05)
        return True

    def _death(self, child: Child) -> str:
        what = "does not answer" if child.is_alive else "has ended"
        return f"the {child.name} process {what}; its last lines:\n" + "\n".join(
            f"  {safe(line)}" for line in child.last_lines
        )

    def _has_time(self, seconds: float) -> bool:
        return self._end is None or time.monotonic() + seconds < self._end

    def _pause(self, seconds: float) -> None:
        """Time to read; shorter when there is little."""
        left_s = seconds if self._end is None else min(seconds, (self._end - time.monotonic()) / 15)
        time.sleep(max(left_s, 0))

    # What the teller says.

    def _title(self, text: str) -> None:
        print(f"\n{painted(text, 'bold')}", flush=True)

    def _say(self, text: str) -> None:
        print(f"  {painted(text, 'dim')}", flush=True)

    def _print_addresses(self) -> None:
        print(f"\nThe page (this address logs you in once):\n  {self._log_in_address()}")
        print("The same by curl:")
        print(f"  {self._curl('/api/debug/errors?limit=5')}")
        print(f"  {self._curl('/api/debug/errors/stats')}")
        print(f"  {self._curl('/api/debug/groups/1')}")
        print(f"  {self._curl('/api/debug/groups/1/resolve', 'POST')}", flush=True)

    def _curl(self, path: str, method: str = "GET") -> str:
        post = "-X POST " if method == "POST" else ""
        return f"curl -s {post}-H 'Authorization: Bearer {self._api.token}' '{self._api.address}{path}'"

    def _log_in_address(self) -> str:
        store = open_store(self._database_url)
        try:
            code = store.write_now(make_code, rights="full", label="demo", now=clock.now())
        finally:
            store.close_now()
        return f"{self._api.address}/admin/debug/login?code={code}"


def _is_stored(line: str) -> bool:
    return _STORED.match(line) is not None


def _names(number: int) -> Callable[[str], bool]:
    """Whether a line of the server names a group, as an alert does."""
    name = re.compile(rf"#{number}\b")
    return lambda line: name.search(line) is not None
