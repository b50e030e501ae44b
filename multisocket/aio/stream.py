"""Streams of bytes for coroutines. How they travel: see multisocket/protocol/flow.py."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, overload

from .. import socket as blocking
from ..connector import Dialer, Listener, Pipe
from ..errors import BrokenPath, Closed, ConnectionRefused, Error, Timeout
from ..message import Message
from ..protocol.flow import CLOSE, END, Flow, control, credit, data
from ..protocol.stream import CONNECT_TIMEOUT, flows_of
from ..shm import UNSET
from .protocol import Protocol
from .waiting import waiting

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import StreamOptions

_READ = 1 << 16

# When a peer has no room for what it must be told, it is tried again after this time, seconds.
_RETRY_TIME = 0.01

# Messages taken before the loop's other tasks get a turn.
_BATCH = 64


class Stream(Protocol):
    """See :class:`multisocket.protocol.Stream`. To be made in the loop that uses it.

    :param options: as there.
    """

    def __init__(self, **options: Unpack[StreamOptions]) -> None:
        self._flows, rest = flows_of(**options)
        super().__init__(blocking.Socket(**rest))
        self._loop = asyncio.get_running_loop()
        self._offered = _Change()
        self._flows.offered = self._offered.tell
        self._timer: asyncio.TimerHandle | None = None
        self._sock = self.socket.socket
        self._sock._watch_pipes(self._on_pipe)
        waiting().add(self._sock, self._take)

    @overload
    async def connect(self, address: str) -> Listener | Dialer: ...

    @overload
    async def connect(self, *, timeout: float | None = ...) -> ByteStream: ...

    async def connect(
        self, address: str | None = None, *, timeout: float | None = CONNECT_TIMEOUT
    ) -> Listener | Dialer | ByteStream:
        """See :meth:`multisocket.protocol.Stream.connect`."""
        if address is not None:
            return await super().connect(address)
        flow, msg = self._flows.open(time.monotonic())
        stream = ByteStream(self, flow)
        try:
            await self.socket.send_msg(msg, timeout)
            await stream._wait(lambda: flow.is_open, timeout, f"nobody has accepted the stream within {timeout} s")
            if flow.reason is not None:
                raise Closed(flow.reason) if self.socket.closed else ConnectionRefused(flow.reason)
        except BaseException:
            self._flows.forget(flow)
            raise
        self._look_later()
        return stream

    async def accept(self, timeout: float | None = None) -> ByteStream:
        """See :meth:`multisocket.protocol.Stream.accept`."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            if self.socket.closed:
                raise Closed("this Stream is closed: make a new one")
            stream = self._accept_now()
            if stream is not None:
                return stream
            soon = time.monotonic() + _RETRY_TIME if self._flows.waiting else None
            if soon is None or (end is not None and end < soon):
                await self._offered.wait(end, f"nobody has opened a stream within {timeout} s")
                continue
            with contextlib.suppress(Timeout):
                await self._offered.wait(soon, "")

    def _accept_now(self) -> ByteStream | None:
        flow = self._flows.accept(lambda msg: self._sock.send_msg(msg, 0), time.monotonic())
        if flow is None:
            return None
        self._look_later()
        return ByteStream(self, flow)

    async def close(self) -> None:
        """See :meth:`multisocket.protocol.Stream.close`."""
        if not self.socket.closed:
            for goodbye in self._flows.goodbyes():
                self._tell(goodbye)
        await super().close()
        self._ended("the Stream was closed")

    def _tell(self, msg: Message[bytes]) -> None:
        """Sends what need not get there."""
        with contextlib.suppress(Error):
            self._sock.send_msg(msg, 0)

    # --- what comes ---

    def _take(self) -> None:
        try:
            self._take_some(_BATCH)
        except Error as error:
            self._ended(str(error))
            return
        waiting().add(self._sock, self._take)

    def _take_some(self, most: float) -> None:
        while most > 0 and (msg := self._sock._poll(True)) is not UNSET:
            most -= 1
            answer = self._flows.heard(msg, time.monotonic())
            if answer is not None:
                self._tell(answer)

    def _on_pipe(self, event: str, pipe: Pipe) -> None:
        """In the background thread."""
        if event == "close":
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._pipe_closed, pipe.id)

    def _pipe_closed(self, pipe: int) -> None:
        with contextlib.suppress(Error):
            self._take_some(float("inf"))  # what the peer had sent before
        self._flows.pipe_closed(pipe)

    def _ended(self, reason: str) -> None:
        self._flows.fail_all(reason)
        self._offered.tell()
        if self._timer is not None:
            self._timer.cancel()

    # --- keep-alive ---

    def _look_later(self) -> None:
        if self._timer is None and (wait := self._flows.next_look(time.monotonic())) is not None:
            self._timer = self._loop.call_later(wait, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.socket.closed:
            return
        for probe in self._flows.look(time.monotonic()):
            self._tell(probe)
        self._look_later()


class ByteStream:
    """See :class:`multisocket.protocol.ByteStream`. ``async for`` gives bytes as they come, until the end."""

    def __init__(self, streams: Stream, flow: Flow) -> None:
        self._streams = streams
        self._flow = flow
        self._change = _Change()
        self._timeout: float | None = None
        self._is_closed = False
        flow.changed = self._change.tell

    @property
    def peer(self) -> tuple[int, ...]:
        """The path to the other end."""
        return self._flow.path

    @property
    def reason(self) -> str | None:
        """Why it is broken; None: it is not, or was ended as it should be."""
        return self._flow.reason

    def settimeout(self, timeout: float | None) -> None:
        """How long a read or write waits, seconds; None for ever (the default)."""
        self._timeout = timeout

    async def read(self, n: int = -1) -> bytes:
        """Up to ``n`` bytes, as soon as there are some; ``b""`` at the end. -1: everything until the end.

        :raises Timeout: none came in the time of ``settimeout``.
        """
        if n >= 0:
            return await self._read_some(n)
        parts = []
        while part := await self._read_some(_READ):
            parts.append(part)
        return b"".join(parts)

    async def readexactly(self, n: int) -> bytes:
        """Just so many bytes.

        :raises asyncio.IncompleteReadError: the end came first.
        """
        parts = bytearray()
        while len(parts) < n:
            part = await self._read_some(n - len(parts))
            if not part:
                raise asyncio.IncompleteReadError(bytes(parts), n)
            parts += part
        return bytes(parts)

    async def _read_some(self, n: int) -> bytes:
        self._require_open()
        flow = self._flow
        if n == 0:
            return b""
        await self._wait(lambda: flow.is_readable, self._timeout, f"nothing came within {self._timeout} s")
        got = bytearray(min(n, flow.available))
        flow.take_into(memoryview(got))
        earned = flow.earned()
        if earned and not self._streams.socket.closed:
            self._give(earned)
        return bytes(got)

    async def write(self, content: ReadableBuffer) -> None:
        """Sends all of it; waits while the peer does not read.

        :raises Timeout: the peer has read nothing in the time of ``settimeout``; some bytes may have been sent.
        :raises BrokenPath: the peer is gone, or has closed the stream.
        """
        left = memoryview(content).cast("B")
        flow = self._flow
        while left:
            self._require_open()
            await self._wait(lambda: flow.is_writable, self._timeout, f"the peer read nothing in {self._timeout} s")
            self._require_writable()
            n = flow.reserve(len(left))
            try:
                await self._streams.socket.send_to(flow.path, data(flow, left[:n]), self._timeout)
            except BaseException:
                flow.credit += n
                raise
            left = left[n:]

    async def shutdown_write(self) -> None:
        """Nothing more will be written: the peer comes to the end, and may go on writing itself.

        :raises Timeout: the peer could not be told in the time of ``settimeout``; it may be tried again.
        """
        self._require_open()
        flow = self._flow
        if flow.is_shut:
            return
        flow.is_shut = True
        self._change.tell()
        if flow.is_deaf:
            return
        try:
            await self._streams.socket.send_msg(control(flow, END), self._timeout)
        except BrokenPath:
            return
        except BaseException:
            flow.is_shut = False
            raise

    async def close(self) -> None:
        """Nothing more is written or read. Closing twice is no error."""
        if self._is_closed:
            return
        self._is_closed = True
        flow = self._flow
        is_told = flow.is_deaf or not flow.theirs
        self._streams._flows.forget(flow)
        flow.is_ended = flow.is_deaf = True
        self._change.tell()
        if not is_told and not self._streams.socket.closed:
            self._streams._tell(control(flow, CLOSE))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self._read_some(_READ):
            yield part

    async def __aenter__(self) -> ByteStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _give(self, earned: int) -> None:
        """Credit is not lost, but given another time, when the peer has no room for it."""
        try:
            self._streams._sock.send_msg(credit(self._flow, earned), 0)
        except Timeout:
            self._flow.not_given(earned)
            self._streams._loop.call_later(_RETRY_TIME, self._give_later)
        except Error:  # the peer is gone: it needs none
            return

    def _give_later(self) -> None:
        earned = self._flow.earned()
        if earned and not self._streams.socket.closed:
            self._give(earned)

    def _require_open(self) -> None:
        if self._is_closed:
            raise ValueError("I/O operation on a closed stream")

    def _require_writable(self) -> None:
        flow = self._flow
        if self._streams.socket.closed and not flow.is_shut:
            raise Closed("the Stream that this one belongs to is closed")
        flow.require_writable()

    async def _wait(self, condition: Callable[[], bool], timeout: float | None, otherwise: str) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while not condition():
            await self._change.wait(end, otherwise)


class _Change:
    """What several tasks wait for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wakes all who wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, end: float | None, otherwise: str) -> None:
        """:raises Timeout: with this text, at ``end``."""
        left = None if end is None else max(0.0, end - time.monotonic())
        try:
            await asyncio.wait_for(self._event.wait(), left)
        except asyncio.TimeoutError:
            raise Timeout(otherwise) from None
