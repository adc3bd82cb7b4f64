"""The story that `tocsin demo` tells: one act for each way to fail, and what people see of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tocsin import clock
from tocsin.demo.client import Client
from tocsin.demo.processes import Child
from tocsin.failures import TocsinError
from tocsin.store import open_store
from tocsin.store.credentials import make_code
from tocsin.terminal import painted, safe

_START_WITHIN_S = 45.0
_SEEN_WITHIN_S = 10.0
_STORM = 300

_STORED = re.compile(r"(CRITICAL|HIGH|MEDIUM|LOW) \S+ #(\d+) ")
"""A stored error, as it stands on the stderr of the service that it happened in."""

_ALERT = "│"
"""How a line of an alert begins on the console."""


class DemoFailed(TocsinError):
    """The demo cannot go on; its text says why."""


class Teller:
    """The one who speaks: lines of the story, and of what the two processes say, never through each other."""

    def __init__(self) -> None:
        self._turn = threading.RLock()

    def title(self, text: str) -> None:
        self.line(f"\n{painted(text, 'bold')}")

    def note(self, text: str) -> None:
        self.line(f"  {painted(text, 'dim')}")

    def line(self, text: str) -> None:
        with self._turn:
            print(text, flush=True)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Nobody else says anything meanwhile."""
        with self._turn:
            yield

    def hear_server(self, line: str) -> None:
        """Of the server, people shall see the alerts."""
        if line.startswith(_ALERT):
            self.line(f"  {painted('alert', 'yellow')} {_ALERT} {safe(line.removeprefix(_ALERT))}")

    def hear_shop(self, line: str) -> None:
        """
        Of the shop, people shall see the errors; the tracebacks lie in the database.

        Server and shop start at the same time, so that what the shop says of a server at its start is not so any more.
        """
        if _is_stored(line) or (line.startswith("tocsin: ") and "no server reads there" not in line):
            self.line(f"  {painted('shop', 'red')}  {_ALERT} {safe(line)}")


class Story:
    """What happens, in its order."""

    def __init__(
        self,
        *,
        server: Child,
        shop: Child,
        api: Client,
        customer: Client,
        database_url: str,
        teller: Teller,
        end: float | None,
    ) -> None:
        self._server = server
        self._shop = shop
        self._api = api
        self._customer = customer
        self._database_url = database_url
        self._teller = teller
        self._end = end

    def tell(self) -> None:
        """The whole story, as far as there is time for it; its first act in any case."""
        self._teller.line(painted("A shop that fails in many ways, and what you hear of it.", "bold"))
        self._wait_until_up(self._shop, self._customer, "/")
        self._wait_until_up(self._server, self._api, "/readyz")
        self._give_addresses()
        number = self._first_error()
        for act in (self._other_ways, self._what_is_no_error, self._storm):
            if self._has_time(3):
                act()
        if self._has_time(2):
            self._resolve(number)
            self._regress(number)
        self._give_addresses()

    def stay(self) -> None:
        """Keep server and shop up until the time is over or somebody has seen enough."""
        if self._end is None:
            self._teller.line("\nEverything stays up until Ctrl-C.")
        while self._has_time(0):
            for child in (self._server, self._shop):
                if not child.is_alive:
                    raise DemoFailed(f"the {child.name} has ended; its last lines:\n{child.last_words}")
            time.sleep(0.1)

    # The acts.

    def _first_error(self) -> int:
        self._teller.title("A customer without a phone number orders tea. The shop has not thought of that:")
        number = self._provoke("POST", "/orders", {"customer": {"name": "Anna"}, "product": "tea"})
        if not self._server.wait_for(_names(number), times=1, timeout_s=_SEEN_WITHIN_S):
            raise DemoFailed(f"no alert came; the last lines of the server:\n{self._server.last_words}")
        self._teller.note("shop: a line on the service's own stderr; the error is stored, and has a group.")
        self._teller.note("alert: what the console channel prints; Telegram gets the same, with buttons.")
        self._teller.note("The group, as the API shows it:")
        self._show_group(number)
        return number

    def _other_ways(self) -> None:
        ways = (
            ("/leads", "The CRM does not answer in time; a third party's failure has its own category:"),
            ("/orders/7/refund", "Caught and logged by logger.exception; the customer saw a 202:"),
            ("/orders/7/pay", "A background task fails after the answer has gone out:"),
            ("/stock/sync", "An asyncio task fails, and nobody asks for its result:"),
            ("/prices", "A thread fails:"),
        )
        for path, title in ways:
            if not self._has_time(3):
                return
            self._teller.title(title)
            number = self._provoke("POST", path)
            self._server.wait_for(_names(number), times=1, timeout_s=_SEEN_WITHIN_S)
            self._pause(1)

    def _what_is_no_error(self) -> None:
        before = self._total()
        self._teller.title("Twenty people ask for orders that do not exist; a 404 is expected, and no error:")
        with self._teller.speaking():
            for order_id in range(9_000, 9_020):
                self._customer.call("GET", f"/orders/{order_id}")
            self._teller.line("  $ GET /orders/9000 … 9019  ->  404")
        self._pause(0.7)
        self._teller.note(f"Errors stored before: {before}; after: {self._total()}.")

    def _storm(self) -> None:
        self._teller.title(f"A bug on a busy page, {_STORM} times, as fast as the shop can fail:")
        number = self._provoke("GET", "/cart")
        for _ in range(_STORM - 1):
            self._customer.call("GET", "/cart")
        self._until(lambda: self._group(number)["count"] == _STORM, _SEEN_WITHIN_S)
        self._server.wait_for(_names(number), times=1, timeout_s=_SEEN_WITHIN_S)
        self._teller.note("One message, a few errors in full, and every one counted:")
        self._show_group(number)
        self._pause(1)

    def _resolve(self, number: int) -> None:
        self._teller.title(f"Somebody mends it and resolves #{number}:")
        path = f"/api/debug/groups/{number}/resolve"
        with self._teller.speaking():
            status, answer = self._api.call("POST", path)
            self._teller.line(f"  $ {self._api.curl(path, 'POST')}")
        if status != 200:
            raise DemoFailed(f"resolve answered {status}: {answer}")
        self._server.wait_for(_names(number), times=2, timeout_s=_SEEN_WITHIN_S)
        self._show_group(number)
        self._pause(1)

    def _regress(self, number: int) -> None:
        self._teller.title("It was not mended after all; the same error is a regression, and rings again:")
        heard = self._server.count(_names(number))
        self._provoke("POST", "/orders", {"customer": {"name": "Boris"}, "product": "tea"})
        if not self._server.wait_for(_names(number), times=heard + 1, timeout_s=_SEEN_WITHIN_S):
            raise DemoFailed(f"the regression did not ring; the last lines of the server:\n{self._server.last_words}")
        self._show_group(number)

    # What the acts are made of.

    def _provoke(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> int:
        """Make a call at which the shop fails; the number of the error's group, once it is stored."""
        stored = self._shop.count(_is_stored)
        with self._teller.speaking():
            status, _ = self._customer.call(method, path, body)
            self._teller.line(f"  $ {method} {path}  ->  {status}")
        if not self._shop.wait_for(_is_stored, times=stored + 1, timeout_s=_SEEN_WITHIN_S):
            raise DemoFailed(f"{path} was not stored; the last lines of the shop:\n{self._shop.last_words}")
        return int(self._api.call("GET", "/api/debug/errors?limit=1")[1]["errors"][0]["group"])

    def _group(self, number: int) -> dict[str, Any]:
        group: dict[str, Any] = self._api.call("GET", f"/api/debug/groups/{number}")[1]["group"]
        return group

    def _show_group(self, number: int) -> None:
        group = self._group(number)
        names = ("status", "severity", "category", "count", "culprit")
        told = ", ".join(f"{name} {safe(group[name])}" for name in names if group[name])
        self._teller.line(f"  {painted(f'#{number}', 'bold')} {safe(group['title'])}: {told}")

    def _total(self) -> int:
        return int(self._api.call("GET", "/api/debug/errors/stats?hours=1")[1]["stats"]["total"])

    def _wait_until_up(self, child: Child, client: Client, path: str) -> None:
        self._until(lambda: client.is_up(path) or not child.is_alive, _START_WITHIN_S)
        if not client.is_up(path):
            raise DemoFailed(f"the {child.name} does not start; its last lines:\n{child.last_words}")

    def _until(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _has_time(self, seconds: float) -> bool:
        return self._end is None or time.monotonic() + seconds < self._end

    def _pause(self, seconds: float) -> None:
        """Time to read; less of it when there is little."""
        if self._end is not None:
            seconds = min(seconds, (self._end - time.monotonic()) / 20)
        time.sleep(max(seconds, 0))

    def _give_addresses(self) -> None:
        calls = [
            ("/api/debug/errors?limit=5", "GET"),
            ("/api/debug/errors/stats", "GET"),
            ("/api/debug/groups/1", "GET"),
            ("/api/debug/groups/1/resolve", "POST"),
        ]
        lines = [f"  {self._api.curl(path, method)}" for path, method in calls]
        page = f"The page (this address logs you in, once, within 10 minutes):\n  {self._log_in_address()}"
        self._teller.line("\n".join(["", page, "The same for a shell:", *lines]))

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
    """Whether a line of the server is the first of an alert about a group."""
    name = re.compile(rf"#{number}\b")
    return lambda line: line.startswith(_ALERT) and name.search(line) is not None
