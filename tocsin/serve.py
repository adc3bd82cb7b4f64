"""The server: store, migrations, alerts and API in one process, from its start to its clean end."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from tocsin import allocator, clock
from tocsin.alerts import scheduler, webhook
from tocsin.api import create_app
from tocsin.api.auth import first_token, login_address
from tocsin.api.calls import House
from tocsin.contained import note
from tocsin.exporter import kept
from tocsin.exporter.brief import Briefs
from tocsin.exporter.database import Database
from tocsin.exporter.door import Door
from tocsin.exporter.drain import SERVER_ADOPTS_EVERY_S, Drain
from tocsin.exporter.early import Early
from tocsin.exporter.neighbours import Neighbours
from tocsin.exporter.otlp import Reader
from tocsin.exporter.spool import Spool, default_max_bytes
from tocsin.failures import BadInput, SchemaMismatch, StoreAway
from tocsin.instrumentation.pulse import Pulse
from tocsin.semconv import SERVICE_NAME
from tocsin.settings import Settings
from tocsin.store import open_store
from tocsin.store.migrate import migrate
from tocsin.text import clean

Say = Callable[[str], None]

HEAD_WITHIN_S = 10
"""How long the head of a request may take."""

_READ_BYTES = 128 * 1024
_SUM_UP_S = 60.0
_CLOSE_S = 4.0
_CLOSE_DOOR_S = 2.0
_DRAIN_S = 2.0
_FINISH_WORK_S = 1.0
_LONGEST_PAUSE_S = 2.0


def serve(settings: Settings, *, host: str, port: int) -> int:
    """
    Serve until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a stop that was asked for, 1 when the address cannot be used, 2 when it
        should not be.
    """
    if not settings.token and not _is_loopback(host):
        _complain(
            f"tocsin serve: {host} can be reached from other machines, and no token is set: set TOCSIN_TOKEN"
            " to a long secret (`openssl rand -hex 24` makes one), or listen on 127.0.0.1"
        )
        return 2
    try:
        listening = _listen(host, port)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        _complain(f"tocsin serve: cannot listen on {host}:{port}: {reason}; give another address with --host, --port")
        return 1
    _settle_memory()
    with listening:
        try:
            return asyncio.run(_serve(settings, listening))
        except BadInput as problem:
            _complain(f"tocsin serve: {problem}")
            return 2


_SWITCH_S = 0.001
_COLLECT_AFTER = 10_000


def _settle_memory() -> None:
    """
    Have the process keep less memory, look through it less often, and its threads take turns sooner.

    A few errors make as many objects as Python collects after, and hold no cycles. While one thread reads a
    large body, what others get from the database and the network waits for its turn.
    """
    allocator.settle()
    gc.freeze()  # what is imported stays
    gc.set_threshold(_COLLECT_AFTER, 10, 10)
    sys.setswitchinterval(_SWITCH_S)


@asynccontextmanager
async def running(settings: Settings, *, base_url: str, say: Say | None = None) -> AsyncIterator[Starlette]:
    """
    The house: an application whose store is opened, migrated, and watched over by the alerts.

    Nothing here waits for the database: while it is away the application answers what it can, errors that
    arrive wait in the spool, and the rest starts when it is back.

    Args:
        base_url: where people reach the page, for the log-in address.
        say: told what happens, line by line (default: nobody).
    """
    say = say or _to_nobody
    store = open_store(settings.database_url)
    async with _taking_in(settings, say) as (door, drain):
        app = create_app(settings, store=store, door=door)
        house: House = app.state.house
        house.expects_alerts = True
        stop = asyncio.Event()
        behind = asyncio.create_task(_run_behind(house, drain, stop, base_url, say), name="tocsin-house")
        try:
            yield app
        finally:
            house.is_shutting_down = True
            stop.set()
            await asyncio.wait({behind}, timeout=_CLOSE_S)
            behind.cancel()
            await asyncio.gather(behind, return_exceptions=True)
            await house.finish(_FINISH_WORK_S)
    await store.close()


@asynccontextmanager
async def _taking_in(settings: Settings, say: Say) -> AsyncIterator[tuple[Door, Drain]]:
    """
    The way of errors that come by HTTP, from the door into the database.

    The door is open from the first moment. The drain, which whoever prepares the database starts, also
    stores what dead processes of this machine left in the spool, and how the living ones are. What it
    does not get done at the end is taken over by the next who comes.
    """
    folder = Path(settings.spool_dir)
    spool = _open_spool(settings, folder, say)
    briefs = Briefs()
    sink = Database(settings, folder, briefs)
    neighbours = Neighbours(folder, sink, silent_after_s=settings.silent_after_s)
    drain = Drain(
        settings,
        spool,
        folder,
        sink=sink,
        chores=(Early(sink.store, settings.categories, say), neighbours.look),
        farewell=neighbours.leave,
        adopt_every_s=SERVER_ADOPTS_EVERY_S,
    )
    door = Door(Reader(settings, briefs), spool, drain.wake, rest=allocator.giver_back())
    door.start()
    pulse = Pulse(spool, (partial(kept.touch, folder),)) if spool is not None else None
    if pulse is not None:
        pulse.start()
    try:
        yield door, drain
    finally:
        await asyncio.to_thread(door.close, _CLOSE_DOOR_S)
        is_stored = await asyncio.to_thread(drain.finish, _DRAIN_S)
        if pulse is not None:
            pulse.end()
        kept.leave(folder)
        if spool is not None:
            spool.close(everything_stored=is_stored)


def _open_spool(settings: Settings, folder: Path, say: Say) -> Spool | None:
    header = {"door": True, "resource": {SERVICE_NAME: "tocsin"}, "started_ns": clock.now_ns()}
    try:
        return Spool(folder, settings.spool_max_bytes or default_max_bytes(folder), header)
    except OSError as problem:
        say(f"the spool folder cannot be used, so no errors are taken: {problem}; set TOCSIN_SPOOL_DIR")
        return None


async def _run_behind(house: House, drain: Drain, stop: asyncio.Event, base_url: str, say: Say) -> None:
    """Prepare the database as soon as it is there; then run drain and alerts until the end, again if they fall."""
    if not await _until_done(lambda: _prepare(house, base_url, say), stop, say):
        return
    drain.start()
    await _until_done(lambda: _ring(house, drain, stop), stop, say)


async def _prepare(house: House, base_url: str, say: Say) -> None:
    await migrate(house.store, say)
    if token := await first_token(house.store, house.settings):
        say("made a token with full access; it is shown this once, for scripts (TOCSIN_TOKEN replaces it):")
        say(f"  Authorization: Bearer {token}")
    address = await login_address(house.store, house.settings, house.settings.public_url or base_url)
    say(f"log in within 10 minutes: {address}")


async def _ring(house: House, drain: Drain, stop: asyncio.Event) -> None:
    async with scheduler.running(house.settings, house.store, behind_s=lambda: drain.behind_s) as ringing:
        house.alerts = ringing
        try:
            await stop.wait()
        finally:
            house.alerts = None


async def _until_done(work: Callable[[], object], stop: asyncio.Event, say: Say) -> bool:
    """Try until it goes through, with pauses of at most two seconds; False when stopped before."""
    pause_s, said = 0.2, ""
    while not stop.is_set():
        try:
            await work()  # type: ignore[misc]
            return True
        except (StoreAway, SchemaMismatch) as problem:
            if (text := f"waiting for the database: {problem}") != said:
                say(text)
                said = text
        except Exception as problem:
            note("starting the server's parts", problem)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
    return False


async def _serve(settings: Settings, listening: socket.socket) -> int:
    base_url = _address_of(listening)
    async with running(settings, base_url=base_url, say=_say) as app:
        server = _Server(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                h11_max_incomplete_event_size=32 * 1024,
                limit_concurrency=1000,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s),
            )
        )
        with _stopping(server, app.state.house), _summing_up():
            _say(f"tocsin listens on {base_url}")
            _say(f"  database {settings.shown_database()}")
            _say(f"  alerts   {shown_channels(settings)}")
            await server.serve(sockets=[listening])
    return 0 if server.started else 1


class _Connection(H11Protocol):
    """
    One connection; who does not send the head of a request in time is let go.

    The server library waits for ever: for the first byte, for each one after it, and for the rest of a body
    whose request was answered already.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # How much is read at once: what a thousand senders have in memory between two looks is a thousand of these.
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        is_at_work = self.cycle is not None and not self.cycle.response_complete
        if is_at_work:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_WITHIN_S, self.transport.close)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `_stopping`: the server would end the process by the signal, not with code 0."""
        yield


class _Refused(logging.Filter):
    """
    Has what the server library warns of summed up: one line a minute at most.

    It warns of each request that is no HTTP, in words that do not say whose they are: whoever sends
    them would fill the disk with them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._next_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        self._count += 1
        if time.monotonic() < self._next_at:
            return False
        many = "1 request" if self._count == 1 else f"{self._count} requests"
        record.msg, record.args = f"tocsin: {many} refused unread, the last for: {record.getMessage()}", ()
        self._count, self._next_at = 0, time.monotonic() + _SUM_UP_S
        return True


@contextmanager
def _summing_up() -> Iterator[None]:
    logger, refused = logging.getLogger("uvicorn.error"), _Refused()
    logger.addFilter(refused)
    try:
        yield
    finally:
        logger.removeFilter(refused)


@contextmanager
def _stopping(server: uvicorn.Server, house: House) -> Iterator[None]:
    """The first signal asks to finish, the second to hurry."""

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        house.is_shutting_down = True

    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for one in signals:
        loop.add_signal_handler(one, stop)
    try:
        yield
    finally:
        for one in signals:
            loop.remove_signal_handler(one)


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_loopback(host: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return True  # it cannot be listened on either, which says more
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def _address_of(listening: socket.socket) -> str:
    """The address of a socket, as a person on this machine opens it."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def shown_channels(settings: Settings) -> str:
    """Where alerts go, in words."""
    ways = []
    chats, readers = len(settings.telegram_chat_ids), len(settings.email_to)
    if settings.telegram_token and chats:
        ways.append(f"Telegram, {chats} {'chat' if chats == 1 else 'chats'}")
    if settings.smtp_url and readers:
        ways.append(f"e-mail, {readers} {'address' if readers == 1 else 'addresses'}")
    if settings.webhook_url:
        ways.append(f"webhook, {webhook.shown(settings)}")
    return "; ".join(ways) or "on this console; `tocsin setup telegram` sets up a chat"


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody may be there to read it
        print(clean(text, 2000), flush=True)


def _complain(text: str) -> None:
    with suppress(OSError, ValueError):
        print(clean(text, 2000), file=sys.stderr, flush=True)


def _to_nobody(text: str) -> None:
    """For who does not want to be told."""
