"""Stream: bytes in both directions over a Socket, as over a tcp connection. How they travel: see flow.py."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from ..background import Timer, background
from ..connector import Dialer, Listener, Pipe
from ..errors import BadOption, BrokenPath, Closed, ConnectionRefused, Error, NotSupported, Timeout
from ..late import log
from ..message import Message
from ..options import resolve, seconds, whole
from ..shm import UNSET
from .flow import CLOSE, END, Flow, Flows, KeepAlive, control, credit, data
from .protocol import LocalProtocol

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Unpack

    from ..options import StreamOptions


CONNECT_TIMEOUT = 16.0
"""Seconds until a stream must be accepted, when nothing is said."""

# So long a close may wait to tell the peer, seconds. If it cannot, the peer finds out when it asks.
_CLOSE_TIMEOUT = 1.0

# When a peer has no room for what it must be told, it is tried again after this time, seconds.
_RETRY_TIME = 0.01


class Stream(LocalProtocol):
    """Opens and accepts streams of bytes; any number over one Socket, through any number of switches.

    :param window: bytes that a peer may send ahead on each stream, 1 to 4 GiB.
    :param backlog: streams that may wait to be accepted; further ones are refused.
    :param idle_time: seconds of silence until a peer is asked whether it is there.
    :param probe_interval: seconds between such questions.
    :param probes: unanswered ones until a stream is broken.
    :param options: of the Socket.
    :raises BadOption: a wrong value.
    """

    def __init__(self, **options: Unpack[StreamOptions]) -> None:
        self._flows, rest = flows_of(**options)
        super().__init__(**rest)
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._offered = threading.Condition(self._lock)
        self._flows.offered = self._offered.notify_all
        self._timer: Timer | None = None
        self.socket._watch_pipes(self._on_pipe)
        threading.Thread(target=self._take, name="multisocket-stream", daemon=True).start()

    @overload
    def connect(self, address: str) -> Listener | Dialer: ...

    @overload
    def connect(self, *, timeout: float | None = ...) -> ByteStream: ...

    def connect(
        self, address: str | None = None, *, timeout: float | None = CONNECT_TIMEOUT
    ) -> Listener | Dialer | ByteStream:
        """Without an address: opens a stream to one peer. With one: see :meth:`multisocket.Socket.connect`.

        :param timeout: seconds until the peer has accepted it; None for ever.
        :raises Timeout: it has not in that time.
        :raises ConnectionRefused: it has too many waiting already.
        """
        if address is not None:
            return super().connect(address)
        return self._open(timeout)

    def _open(self, timeout: float | None) -> ByteStream:
        self._require_here()
        end = _end(timeout)
        with self._lock:
            flow, msg = self._flows.open(time.monotonic())
            stream = ByteStream(self, flow)
        try:
            self.socket.send_msg(msg, timeout)
            stream._wait(lambda: flow.is_open, end, f"nobody has accepted the stream within {timeout} s")
            if flow.reason is not None:
                raise Closed(flow.reason) if self.socket.closed else ConnectionRefused(flow.reason)
        except BaseException:
            with self._lock:
                self._flows.forget(flow)
            raise
        self._look_later()
        return stream

    def accept(self, timeout: float | None = None) -> ByteStream:
        """The next stream that a peer opens.

        :param timeout: seconds; None for ever.
        :raises Timeout: none in that time.
        :raises Closed: this end is closed.
        """
        stream = self._accept_while(lambda: True, timeout)
        assert stream is not None
        return stream

    def _accept_while(self, is_wanted: Callable[[], bool], timeout: float | None) -> ByteStream | None:
        """The same, or None when it is not wanted any more; to be told by :meth:`_look_at_wishes`."""
        self._require_here()
        end = _end(timeout)
        with self._offered:
            while is_wanted():
                stream = self._accept_now()
                if stream is not None:
                    return stream
                if self.socket.closed:
                    raise Closed("this Stream is closed: make a new one")
                left = _left(end)
                if left == 0:
                    raise Timeout(f"nobody has opened a stream within {timeout} s")
                self._offered.wait(_soon(left) if self._flows.waiting else left)
        return None

    def _accept_now(self) -> ByteStream | None:
        """With the lock, so that nobody speaks to the peer before it is told."""
        flow = self._flows.accept(lambda msg: self.socket.send_msg(msg, 0), time.monotonic())
        if flow is None:
            return None
        self._look_later()
        return ByteStream(self, flow)

    def _look_at_wishes(self) -> None:
        with self._lock:
            self._offered.notify_all()

    def close(self) -> None:
        """Ends all streams, and the Socket."""
        if not self._is_here:  # the streams, and the lock, are the other process's
            super().close()
            return
        if not self.socket.closed:
            with self._lock:
                goodbyes = self._flows.goodbyes()
            for goodbye in goodbyes:
                self._tell(goodbye, 0)
        super().close()
        self._ended("the Stream was closed")

    # --- for its streams ---

    @property
    def _is_here(self) -> bool:
        return self._pid == os.getpid()

    def _require_here(self) -> None:
        if self.socket.closed:
            raise Closed("this Stream is closed: make a new one")
        if not self._is_here:
            raise NotSupported("streams stay in the process that made the Stream: make one in this process")

    def _tell(self, msg: Message[bytes], timeout: float | None) -> None:
        """Sends what need not get there."""
        with contextlib.suppress(Error):
            self.socket.send_msg(msg, timeout)

    # --- what comes ---

    def _take(self) -> None:
        try:
            while self.socket._await_readable(None):
                self._take_all()
        except Error as error:
            if not self.socket.closed:
                log.warning("streams cannot go on: %s", error)
            self._ended(str(error))

    def _take_all(self) -> None:
        """Whoever does it, has the lock from taking a message until it is heeded: so they stay in order."""
        with self._lock:
            while (msg := self.socket._poll(True, copy=False)) is not UNSET:
                with msg:
                    answer = self._flows.heard(msg, time.monotonic())
                if answer is not None:
                    self._tell(answer, 0)

    def _on_pipe(self, event: str, pipe: Pipe) -> None:
        if event != "close":
            return
        with self._lock:
            with contextlib.suppress(Error):
                self._take_all()  # what the peer had sent before
            self._flows.pipe_closed(pipe.id)

    def _ended(self, reason: str) -> None:
        with self._lock:
            self._flows.fail_all(reason)
            self._offered.notify_all()
            if self._timer is not None:
                self._timer.cancel()

    # --- keep-alive ---

    def _look_later(self) -> None:
        with self._lock:
            if self._timer is None and (wait := self._flows.next_look(time.monotonic())) is not None:
                self._timer = background().call_later(wait, self._look)

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            if self.socket.closed:
                return
            for probe in self._flows.look(time.monotonic()):
                self._tell(probe, 0)
        self._look_later()


class ByteStream(io.RawIOBase):
    """One stream of bytes in both directions; file-like. ``io.BufferedRWPair(stream, stream)`` buffers it.

    When the peer dies, what came can be read to its end, which comes early then: ``reason`` tells.
    """

    def __init__(self, streams: Stream, flow: Flow) -> None:
        super().__init__()
        self._streams = streams
        self._flow = flow
        self._timeout: float | None = None
        self._changed = threading.Condition(streams._lock)
        flow.changed = self._changed.notify_all

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
        self._timeout = None if timeout is None else float(timeout)

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Waits for some bytes; how many. 0 at the end.

        :raises Timeout: none came in the time of ``settimeout``.
        """
        self._require_open()
        target = memoryview(buffer).cast("B")
        if not len(target):
            return 0
        flow = self._flow
        with self._changed:
            self._wait(lambda: flow.is_readable, _end(self._timeout), f"nothing came within {self._timeout} s")
            n = flow.take_into(target)
            self._give()
        return n

    def write(self, data_: ReadableBuffer) -> int:
        """Waits until some of the bytes may be sent; how many were. (A ``BufferedWriter`` sends all.)

        :raises Timeout: the peer has read nothing in the time of ``settimeout``.
        :raises BrokenPath: the peer is gone, or has closed the stream.
        """
        self._require_open()
        content = memoryview(data_).cast("B")
        if not len(content):
            return 0
        flow = self._flow
        end = _end(self._timeout)
        with self._changed:
            self._wait(lambda: flow.is_writable, end, f"the peer read nothing in {self._timeout} s")
            self._require_writable()
            n = flow.reserve(len(content))
        try:
            self._streams.socket.send_to(flow.path, data(flow, content[:n]), _left(end))
        except Error:
            with self._changed:
                flow.credit += n
                self._changed.notify_all()
            raise
        return n

    def shutdown_write(self) -> None:
        """Nothing more will be written: the peer comes to the end, and may go on writing itself.

        :raises Timeout: the peer could not be told in the time of ``settimeout``; it may be tried again.
        """
        self._require_open()
        flow = self._flow
        with self._changed:
            if flow.is_shut:
                return
            flow.is_shut = True
            self._changed.notify_all()
        if flow.is_deaf:
            return
        try:
            self._streams.socket.send_msg(control(flow, END), self._timeout)
        except BrokenPath:
            return
        except BaseException:
            flow.is_shut = False
            raise

    def close(self) -> None:
        """Nothing more is written or read. Closing twice is no error."""
        if self.closed:
            return
        super().close()
        if not self._streams._is_here:  # it is the other process's, which may go on
            return
        flow = self._flow
        with self._changed:
            is_told = flow.is_deaf or not flow.theirs
            self._streams._flows.forget(flow)
            flow.is_ended = flow.is_deaf = True
            self._changed.notify_all()
        if not is_told and not self._streams.socket.closed:
            self._streams._tell(control(flow, CLOSE), _CLOSE_TIMEOUT)

    def _require_open(self) -> None:
        if not self._streams.socket.closed:
            self._streams._require_here()
        if self.closed:
            raise ValueError("I/O operation on a closed stream")

    def _require_writable(self) -> None:
        flow = self._flow
        if self.closed:  # by another thread
            raise ValueError("I/O operation on a closed stream")
        if self._streams.socket.closed and not flow.is_shut:
            raise Closed("the Stream that this one belongs to is closed")
        flow.require_writable()

    def _wait(self, condition: Callable[[], bool], end: float | None, otherwise: str) -> None:
        with self._changed:
            while not condition():
                self._give()
                left = _left(end)
                if left == 0:
                    raise Timeout(otherwise)
                self._changed.wait(_soon(left) if self._flow.is_earned else left)

    def _give(self) -> None:
        """Credit for which the peer has no room is kept, and given while somebody waits: both could wait for ever."""
        flow = self._flow
        earned = flow.earned()
        if not earned:
            return
        try:
            self._streams.socket.send_msg(credit(flow, earned), 0)
        except Timeout:
            flow.not_given(earned)
        except Error:  # the peer is gone: it needs none
            return

    def __enter__(self) -> ByteStream:
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        raise NotSupported("a stream stays in the process that made it: make a Stream in the other one, and connect it")


def _end(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _soon(left: float | None) -> float:
    return _RETRY_TIME if left is None else min(left, _RETRY_TIME)


OPTIONS = {
    "window": whole(1 << 18, 1, 0xFFFFFFFF, "bytes"),
    "backlog": whole(128, 1, 1 << 20, "streams"),
    "idle_time": seconds(30.0),
    "probe_interval": seconds(1.0),
    "probes": whole(7, 1, 1000, "probes"),
}


_NOT_FOR_STREAMS = ("no_recv", "no_send", "send_best_effort")


def flows_of(**options: Unpack[StreamOptions]) -> tuple[Flows, dict[str, Any]]:
    """What a Stream is made with: its streams, and the options of its Socket."""
    for name in _NOT_FOR_STREAMS:
        if options.get(name) is True:
            raise BadOption(f"option {name} cannot be True here: streams go both ways and lose nothing; leave it out")
    own = resolve(OPTIONS, {name: value for name, value in options.items() if name in OPTIONS})
    rest = {name: value for name, value in options.items() if name not in OPTIONS}
    keep_alive = KeepAlive(own["idle_time"], own["probe_interval"], own["probes"])
    return Flows(own["window"], own["backlog"], keep_alive), rest
