"""Port forwarding: plain tcp clients reach a plain tcp server through streams, wherever their Sockets lead."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from ..address import parse
from ..errors import AddressInUse, BadAddress, Error
from ..late import log
from ..transport.tcp import show, split
from .stream import ByteStream, Stream

_CHUNK = 1 << 16

# The system may let this many clients wait until their streams are open.
_BACKLOG = 128

# Without a descriptor for one more client, it is tried again after this time, seconds.
_RETRY_TIME = 0.1


class Forwarding:
    """Connections that are carried, until it is closed.

    :param address: of the tcp end.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        """Where clients connect, or the server is."""
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closed = threading.Event()

    def close(self) -> None:
        """Takes no more connections, and ends those that there are. Closing twice is no error.

        The Stream stays open.
        """
        with self._lock:
            self._closed.set()
            connections = list(self._connections)
        for connection in connections:
            _shut(connection, socket.SHUT_RDWR)

    def __enter__(self) -> Forwarding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _holding(self, connection: socket.socket) -> Iterator[None]:
        """While it is of use: from here on ``close`` ends it."""
        with self._lock:
            self._connections.add(connection)
            is_late = self._closed.is_set()
        if is_late:
            _shut(connection, socket.SHUT_RDWR)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _carry(self, connection: socket.socket, stream: ByteStream) -> None:
        """Both ways, until both have ended."""
        with stream:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what comes in pieces goes on in pieces
            there = _start(_to_stream, connection, stream)
            _to_connection(stream, connection)
            there.join()


def forward_in(streams: Stream, address: str) -> Forwarding:
    """Takes plain tcp clients, and carries each over a stream of its own to a peer that does :func:`forward_out`.

    :param streams: connected with that peer; it may be connected later.
    :param address: where clients connect: ``tcp://host:port``; port 0 takes a free one, ``*`` all interfaces.
    :returns: its ``address`` is the bound one, its ``close`` ends it.
    :raises AddressInUse, BadAddress: it cannot be listened on.
    """
    host, port = _host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server(("" if host == "*" else host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        kind = AddressInUse if error.errno == errno.EADDRINUSE else BadAddress
        raise kind(f"{address} cannot be listened on: {error}; give another address, or port 0 for any") from error
    forwarding = _Entrance(f"tcp://{show((host, listening.getsockname()[1]))}", listening)
    _start(forwarding._take_clients, streams)
    return forwarding


def forward_out(streams: Stream, address: str) -> Forwarding:
    """Connects each stream that comes with a plain tcp server. Nobody else accepts from these streams.

    :param streams: connected with a peer that does :func:`forward_in`.
    :param address: of the server: ``tcp://host:port``.
    :raises BadAddress: it is no such address.
    """
    forwarding = _Exit(address, _host_and_port(address), streams)
    _start(forwarding._take_streams)
    return forwarding


class _Entrance(Forwarding):
    def __init__(self, address: str, listening: socket.socket) -> None:
        super().__init__(address)
        self._listening = listening

    def close(self) -> None:
        _shut(self._listening, socket.SHUT_RDWR)  # wakes who accepts; close alone would not
        super().close()

    def _take_clients(self, streams: Stream) -> None:
        with self._listening:
            while not self._closed.is_set():
                try:
                    connection, _ = self._listening.accept()
                except OSError:  # closed; or no descriptor is left
                    self._closed.wait(_RETRY_TIME)
                    continue
                if not _started(self._connect, streams, connection):
                    connection.close()

    def _connect(self, streams: Stream, connection: socket.socket) -> None:
        with self._holding(connection):
            try:
                self._carry(connection, streams.connect())
            except (Error, OSError, RuntimeError) as error:
                log.info("a client of %s is not carried: %s", self.address, error)


class _Exit(Forwarding):
    def __init__(self, address: str, server: tuple[str, int], streams: Stream) -> None:
        super().__init__(address)
        self._server = server
        self._streams = streams

    def close(self) -> None:
        super().close()
        self._streams._look_at_wishes()

    def _take_streams(self) -> None:
        while True:
            try:
                stream = self._streams._accept_while(lambda: not self._closed.is_set(), None)
            except Error:  # they are closed
                return
            if stream is None:
                return
            if not _started(self._connect, stream):
                stream.close()

    def _connect(self, stream: ByteStream) -> None:
        try:
            connection = socket.create_connection(self._server)
        except OSError as error:
            log.info("the server at %s cannot be reached: %s", self.address, error)
            stream.close()
            return
        with self._holding(connection):
            try:
                self._carry(connection, stream)
            except (OSError, RuntimeError) as error:
                log.info("a stream to %s is not carried: %s", self.address, error)


def _to_stream(connection: socket.socket, stream: ByteStream) -> None:
    try:
        while content := connection.recv(_CHUNK):
            view = memoryview(content)
            while view:
                view = view[stream.write(view) :]
        stream.shutdown_write()
    except (OSError, ValueError, Error):
        # One way is broken, so the connection is: the other one must not go on for ever.
        stream.close()
        _shut(connection, socket.SHUT_RDWR)


def _to_connection(stream: ByteStream, connection: socket.socket) -> None:
    try:
        while content := stream.read(_CHUNK):
            connection.sendall(content)
    except (OSError, ValueError, Error):
        stream.close()
        _shut(connection, socket.SHUT_RDWR)
        return
    if stream.reason is None:
        _shut(connection, socket.SHUT_WR)
    else:
        _reset(connection)


def _reset(connection: socket.socket) -> None:
    """Its end is no ordinary one: what came may not be all."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _shut(connection, socket.SHUT_RD)  # wakes who reads from it, and closes it then


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(how)


def _start(work: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, name="multisocket-forward", daemon=True)
    thread.start()
    return thread


def _started(work: Callable[..., None], *args: object) -> bool:
    try:
        _start(work, *args)
    except RuntimeError as error:  # the system has no thread for one more
        log.warning("a connection is not carried: %s", error)
        return False
    return True


def _host_and_port(text: str) -> tuple[str, int]:
    address = parse(text)
    if address.scheme != "tcp":
        raise BadAddress(f"{text!r} is not where plain tcp goes: write tcp://host:port")
    return split(address)
