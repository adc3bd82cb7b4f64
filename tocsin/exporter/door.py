"""
The door: what comes by HTTP is read, put into the spool, and only then answered.

One thread reads and writes. So a large body holds up no other answer of the server, and whatever
waits when it comes round goes to the disk together, with one sync for all.
"""

from __future__ import annotations

import asyncio
import io
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Literal

from tocsin import clock
from tocsin.contained import contained, note, own_threads
from tocsin.exporter.otlp import Reader, Reading, TooMuch, Unreadable
from tocsin.exporter.otlp_json import MOST_BYTES as JSON_BYTES
from tocsin.exporter.spool import LINE_BYTES, Spool
from tocsin.failures import BadInput, TocsinError

Kind = Literal["logs", "traces", "posted", "line"]
"""What a body is; a line is one of the spool, made by the server itself."""

BODY_BYTES: Final[dict[Kind, int]] = {"logs": 8 * 2**20, "traces": 8 * 2**20, "posted": 2**20, "line": LINE_BYTES}
"""The most that one body may hold, as it is sent and as it is unpacked."""

ROOM_BYTES: Final = 10 * 2**20
ROOM_BODIES: Final = 512
_PACKED_WEIGHS = 3

_MEMBERS = 64
_PIECE_BYTES = 64 * 2**10
_GROUP_BODIES = 64
_GROUP_BYTES = 2 * 2**20

_FULL_RETRY_S = 5
_BUSY_RETRY_S = 1


class Full(TocsinError):
    """There is no room for an error now; its sender shall send it again after ``retry_after_s``."""

    def __init__(self, problem: str, retry_after_s: int) -> None:
        super().__init__(f"{problem}; send it again later")
        self.retry_after_s = retry_after_s


class Room:
    """
    How much of all bodies may be in memory at once, those that are still arriving too; for one event loop.

    Without it a thousand large bodies at once would take a thousand times the memory of one.
    """

    def __init__(self, max_bytes: int = ROOM_BYTES, max_bodies: int = ROOM_BODIES) -> None:
        self.max_bytes = max_bytes
        self._bytes_left = max_bytes
        self._bodies_left = max_bodies

    def enter(self, *, is_gzip: bool = False) -> Place:
        """
        A place for one body, with nothing in it yet; one that is packed takes more than it is long.

        Raises:
            Full: there are too many bodies.
        """
        return Place(self, _PACKED_WEIGHS if is_gzip else 1)

    def take(self, size: int, bodies: int = 0) -> None:
        """Take some of it, or `Full`."""
        if size > self._bytes_left or bodies > self._bodies_left:
            raise Full("too much arrives at once", _BUSY_RETRY_S)
        self._bytes_left -= size
        self._bodies_left -= bodies

    def give_back(self, size: int, bodies: int) -> None:
        """What `take` took."""
        self._bytes_left += size
        self._bodies_left += bodies


class Place:
    """What one body takes of the room; given back at the end of its ``with``."""

    __slots__ = ("_room", "_size", "_weight")

    def __init__(self, room: Room, weight: int) -> None:
        room.take(0, 1)
        self._room = room
        self._weight = weight
        self._size = 0

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *args: object) -> None:
        self._room.give_back(self._size, 1)

    def grow(self, size: int) -> None:
        """Take so many bytes more, or `Full`; what is packed takes all of the room at most, else it never came in."""
        more = min(size * self._weight, max(self._room.max_bytes - self._size, size))
        self._room.take(more)
        self._size += more


@dataclass(slots=True)
class _Body:
    """One body that waits, and who waits for its outcome."""

    kind: Kind
    content: bytes
    is_json: bool
    is_gzip: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[_Outcome]


_Outcome = Reading | TocsinError
_Handled = tuple[_Body, _Outcome]


class Door:
    """
    Args:
        reader: used by the thread of the door alone.
        spool: this process's own; None when its folder cannot be used, then everything is refused.
        wake: told when there is something to store.
        rest: called whenever a group of bodies is done with.
    """

    def __init__(
        self,
        reader: Reader,
        spool: Spool | None,
        wake: Callable[[], None],
        *,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.room = Room()
        self._reader = reader
        self._spool = spool
        self._wake = wake
        self._rest = rest
        self._waiting: SimpleQueue[_Body | None] = SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="tocsin-door", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Finish what waits, refuse what comes after it; safe to call twice, and before `start`."""
        if not self._is_closed:
            self._is_closed = True
            self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._refuse_rest()

    async def take(self, kind: Kind, body: bytes, *, is_json: bool, is_gzip: bool) -> Reading:
        """
        Read a body and keep its errors; when this returns they are on the disk.

        Args:
            body: as it was sent, at most `BODY_BYTES` of its kind.

        Raises:
            Unreadable: it is not what it says that it is; sending it again is of no use.
            TooMuch: it is too large, or too large once unpacked.
            BadInput: what was posted has a wrong field.
            Full: it was not kept; its sender shall send it again.
        """
        if self._is_closed:
            raise _stopping()
        if self._spool is None:
            raise Full("the spool folder of the server cannot be used", _FULL_RETRY_S)
        loop = asyncio.get_running_loop()
        waiting = _Body(kind, body, is_json, is_gzip, loop, loop.create_future())
        self._waiting.put(waiting)
        if not self._thread.is_alive():  # it ended in between, and looks at nothing any more
            self._refuse_rest()
        try:
            outcome = await waiting.future
        finally:
            waiting.content = b""  # whoever gave up waiting has left its place in the room
        if isinstance(outcome, Reading):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # else it and this frame hold each other, and the body, until they are swept

    def _run(self) -> None:
        own_threads.add(threading.get_ident())
        group: list[_Body] = []
        try:
            while group := self._next_group():
                self._handle(group)
                group.clear()  # with all that they held
                self._rest()
        finally:
            self._is_closed = True
            _answer([(body, _stopping()) for body in group])  # those that have an answer keep it
            self._refuse_rest()
            own_threads.discard(threading.get_ident())

    def _next_group(self) -> list[_Body]:
        """What waits, as much as is good for one sync; nothing when it is time to end."""
        group: list[_Body] = []
        size = 0
        try:
            body = self._waiting.get()
            while body is not None:
                group.append(body)
                size += len(body.content)
                if len(group) >= _GROUP_BODIES or size >= _GROUP_BYTES:
                    return group
                body = self._waiting.get_nowait()
            self._waiting.put(None)  # for the next round, which then ends
        except Empty:
            pass
        return group

    def _handle(self, group: Sequence[_Body]) -> None:
        """Read all, and keep what was read whenever it is much: a small body may hold a lot."""
        read: list[_Handled] = []
        size = 0
        for body in group:
            outcome = self._read(body)
            read.append((body, outcome))
            size += sum(map(len, outcome.lines)) if isinstance(outcome, Reading) else 0
            if size >= _GROUP_BYTES:
                self._keep(read)
                read, size = [], 0
        self._keep(read)

    def _keep(self, read: Sequence[_Handled]) -> None:
        lines = [line for _, outcome in read if isinstance(outcome, Reading) for line in outcome.lines]
        is_kept = True
        if lines and self._spool is not None:
            try:
                is_kept = self._spool.append_all(lines)
            except Exception as problem:
                note("keeping what came by HTTP", problem)
                is_kept = False
            self._wake()
        if not is_kept:
            full = Full("the spool of the server is full, or its disk is", _FULL_RETRY_S)
            read = [(body, full if isinstance(one, Reading) and one.lines else one) for body, one in read]
        _answer(read)

    def _read(self, body: _Body) -> _Outcome:
        if body.future.cancelled():
            return Full("nobody waits for it", _BUSY_RETRY_S)
        try:
            limit = BODY_BYTES[body.kind]
            most = min(limit, JSON_BYTES) if body.is_json else limit
            content = inflated(body.content, most) if body.is_gzip else body.content
            if len(content) > limit:
                raise TooMuch(f"the body is longer than {limit} bytes")
            now_ns = clock.now_ns()
            match body.kind:
                case "logs":
                    return self._reader.logs(content, is_json=body.is_json, now_ns=now_ns)
                case "traces":
                    return self._reader.traces(content, is_json=body.is_json, now_ns=now_ns)
                case "posted":
                    return self._reader.posted(content, now_ns=now_ns)
                case "line":
                    return Reading([content], 1)
        except (Unreadable, TooMuch, BadInput) as problem:
            # Without the frames that it came through, which hold all that was unpacked and read.
            problem.__context__ = None
            return problem.with_traceback(None)
        except Exception as problem:  # a body that we do not understand shall not come again and again
            note("reading what came by HTTP", problem)
            return Unreadable("this body cannot be read")

    def _refuse_rest(self) -> None:
        """No one's answer is lost; safe from any thread."""
        refused: list[_Handled] = []
        with suppress(Empty):
            while True:
                body = self._waiting.get_nowait()
                if body is not None:
                    refused.append((body, _stopping()))
        _answer(refused)


def _stopping() -> Full:
    return Full("the server is stopping", _BUSY_RETRY_S)


def _answer(handled: Sequence[_Handled]) -> None:
    """Tell all who wait; each event loop is woken once for all of its own."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Handled]] = {}
    for body, outcome in handled:
        by_loop.setdefault(body.loop, []).append((body, outcome))
    for loop, mine in by_loop.items():
        with contained("answering by HTTP"):  # a loop that is closed already
            loop.call_soon_threadsafe(_settle, mine)


def _settle(handled: Sequence[_Handled]) -> None:
    for body, outcome in handled:
        if not body.future.done():
            body.future.set_result(outcome)


def inflated(data: bytes, limit: int) -> bytes:
    """
    What a gzip body holds.

    Args:
        data: one or more members, one after the other, with nothing between and after them.
        limit: the most bytes; no more than this is ever in memory.

    Raises:
        Unreadable: it is no gzip, is cut short, or its trailer tells another length or sum.
        TooMuch: it holds more, or has far too many members.

    Source: RFC 1952, section 2.2.
    """
    given = memoryview(data)
    if int.from_bytes(data[-4:], "little") > limit:  # says its trailer: most likely nothing of it is ever needed
        _inflate(given, _Out(None), limit)
    kept = io.BytesIO()  # hands its memory over without a copy, which `bytes(bytearray)` does not
    _inflate(given, _Out(kept), limit)
    return kept.getvalue()


class _Out:
    """Where what is unpacked goes, and how much that is; it may go nowhere."""

    def __init__(self, kept: io.BytesIO | None) -> None:
        self.size = 0
        self._kept = kept

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._kept is not None:
            self._kept.write(piece)


def _inflate(given: memoryview, out: _Out, limit: int) -> None:
    position = 0
    for _ in range(_MEMBERS):
        position += _inflate_member(given[position:], out, limit)
        if position == len(given):
            return
    raise TooMuch("the body has too many gzip members")


def _inflate_member(given: memoryview, out: _Out, limit: int) -> int:
    """Inflate one member by pieces, since zlib copies what it leaves of each; how many bytes the member has."""
    inflater = zlib.decompressobj(wbits=31)
    position = 0
    rest: bytes | memoryview = b""
    while not inflater.eof:
        if not rest:
            rest = given[position : position + _PIECE_BYTES]
            position += len(rest)
        is_at_end = not rest
        try:
            piece = inflater.decompress(rest, _PIECE_BYTES)
        except zlib.error:
            raise Unreadable("the body is no valid gzip") from None
        rest = inflater.unconsumed_tail
        if out.size + len(piece) > limit:
            raise TooMuch(f"the body is longer than {limit} bytes once it is unpacked")
        out.write(piece)
        if is_at_end and not piece and not inflater.eof:
            raise Unreadable("the body's gzip is cut short")
    return position - len(inflater.unused_data)
