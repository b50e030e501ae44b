"""``tcp://host:port``: peers across a network.

The host is a name, an IPv4 address, an IPv6 address in brackets, or ``*`` for all interfaces (IPv6 and IPv4 where the
system has both). Port 0 is any free one; the listener's ``address`` tells which.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..address import Address
from ..descriptors import own
from ..errors import AddressInUse, BadAddress, ConnectionRefused, Error
from ..late import late
from ..options import Option, flag, seconds, whole
from .interface import Connection, Listening, Transport

if TYPE_CHECKING:
    import socket
    import termios
else:
    socket = late("socket")
    termios = late("termios")

BACKLOG = 4096

OPTIONS: Mapping[str, Option] = {
    "no_delay": flag(True),
    "keep_alive": flag(True),
    "keep_alive_period": seconds(None, optional=True),
    "read_buffer": whole(None, 1, 1 << 30, "bytes", optional=True),
    "write_buffer": whole(None, 1, 1 << 30, "bytes", optional=True),
}

Where = tuple[int, Any]


def split(address: Address) -> tuple[str, int]:
    """Host and port of an address, whatever follows a slash left out.

    :raises BadAddress: it is not of that form.
    """
    where = address.location.partition("/")[0]
    host, colon, port = where.rpartition(":")
    if not colon or not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise BadAddress(f"{address}: write host:port, and an IPv6 address in brackets, like [::1]:30001")
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise BadAddress(f"{address}: the port is a number from 0 to 65535, not {port!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _look_up(address: Address, *, listening: bool) -> list[Where]:
    host, port = split(address)
    if host == "*":
        host = "" if listening else "localhost"
    if port == 0 and not listening:
        raise BadAddress(f"{address}: port 0 can be listened on, not dialed")
    flags = socket.AI_PASSIVE if listening else 0
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise BadAddress(f"{address}: no address was found for the host {host!r}: {error}") from error
    return [(family, where) for family, _, _, _, where in found]


def show(where: Any) -> str:
    """``host:port`` of what the system calls an address."""
    if not isinstance(where, tuple):
        return str(where)
    host, port = where[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tune(one: socket.socket, options: Mapping[str, Any]) -> None:
    """Sets a socket's options."""
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options["no_delay"])
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, options["keep_alive"])
    period = options["keep_alive_period"]
    if period is not None:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(period)))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(period)))
    if options["read_buffer"] is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options["read_buffer"])
    if options["write_buffer"] is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options["write_buffer"])


def end_side(one: socket.socket) -> bool:
    """Ends our side of a connection. True: the peer's system has all that was written, or the connection is broken."""
    try:
        one.shutdown(socket.SHUT_WR)
        while one.recv(65536):
            pass
        return True
    except (BlockingIOError, InterruptedError):
        return fcntl.ioctl(one, termios.TIOCOUTQ, bytes(4)) == bytes(4)
    except OSError:
        return True


class TcpConnection(Connection):
    """A socket that is connected, or will be to one of some addresses: the first that answers."""

    is_plain = True

    def __init__(self, asked: str, options: Mapping[str, Any], *, addresses: list[Where], made: Any = None) -> None:
        self._asked = asked
        self._options = options
        self._addresses = addresses
        self.socket: socket.socket | None = made
        self._error: OSError | None = None
        self._is_connected = made is not None
        if made is not None:
            made.setblocking(False)
            tune(made, options)
            self._name_peer()
        else:
            self._try_next()

    def _name_peer(self) -> None:
        assert self.socket is not None
        with contextlib.suppress(OSError):
            self.peer = show(self.socket.getpeername())

    def _try_next(self) -> None:
        while self._addresses:
            family, where = self._addresses.pop(0)
            try:
                self.socket = own(partial(socket.socket, family, socket.SOCK_STREAM))
                self.socket.setblocking(False)
                tune(self.socket, self._options)
                self.socket.connect(where)
            except BlockingIOError:
                pass
            except OSError as error:
                self._give_up(error)
                continue
            self.wants_write = True
            self.peer = show(where)
            return
        raise self._why_not()

    def _give_up(self, error: OSError) -> None:
        self._error = error
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _why_not(self) -> Error:
        error = self._error
        if isinstance(error, ConnectionRefusedError):
            return ConnectionRefused(f"nobody listens at {self._asked}")
        return ConnectionRefused(f"could not connect to {self._asked}: {error}")

    def fileno(self) -> int:
        """See ``Connection``, as of all these."""
        return -1 if self.socket is None else self.socket.fileno()

    def proceed(self) -> bool:
        """Looks whether it is connected, or tries the next address."""
        if self._is_connected:
            self.wants_write = False
            return True
        assert self.socket is not None
        failure = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            self._give_up(OSError(failure, os.strerror(failure)))
            self._try_next()
            return False
        try:
            self.socket.getpeername()
        except OSError:
            return False
        if self.socket.getsockname() == self.socket.getpeername():
            # A port of the range that the system gives out connects to itself when nobody listens there.
            self._give_up(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
            self._try_next()
            return False
        self._is_connected = True
        self.wants_write = False
        return True

    def read(self, most: int) -> bytes | None:
        """What has come."""
        assert self.socket is not None
        try:
            return self.socket.recv(most)
        except (BlockingIOError, InterruptedError):
            return None

    def write(self, data: memoryview) -> int:
        """As much as the system takes."""
        assert self.socket is not None
        try:
            return self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            self.wants_write = True
            return 0

    def finish(self) -> bool:
        """Ends our side, and waits until the peer's system has confirmed all."""
        return self.socket is None or end_side(self.socket)

    def detach(self) -> None:
        """It is the carrier's now."""
        if self.socket is not None:
            self.socket.detach()

    def close(self) -> None:
        """Ends it."""
        if self.socket is not None:
            self.socket.close()


class TcpListening(Listening):
    """A listening socket."""

    def __init__(self, address: Address, options: Mapping[str, Any]) -> None:
        self._options = options
        self.socket = _listen_at(address)
        path = address.location.partition("/")[2]
        self.address = f"{address.scheme}://{_shown(address, self.socket)}" + (f"/{path}" if path else "")

    def fileno(self) -> int:
        """See ``Listening``, as of all these."""
        return self.socket.fileno()

    def accept(self) -> TcpConnection | None:
        """The next connection."""
        while True:
            try:
                connection = own(lambda: self.socket.accept()[0])
            except (BlockingIOError, InterruptedError):
                return None
            except ConnectionAbortedError:
                continue
            try:
                return TcpConnection(self.address, self._options, addresses=[], made=connection)
            except OSError:  # it is gone already
                connection.close()

    def close(self) -> None:
        """Stops."""
        self.socket.close()


def _shown(address: Address, bound: socket.socket) -> str:
    """With the port that was bound; the host as it was given."""
    host = address.location.partition("/")[0].rpartition(":")[0]
    return f"{host}:{bound.getsockname()[1]}"


def _listen_at(address: Address) -> socket.socket:
    host, port = split(address)
    try:
        if host == "*" and socket.has_dualstack_ipv6():
            bound = own(
                lambda: socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG, reuse_port=False
                )
            )
        else:
            family, where = _look_up(address, listening=True)[0]
            bound = own(lambda: socket.create_server(where[:2], family=family, backlog=BACKLOG))
    except BadAddress:
        raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{address} is in use: somebody listens there") from error
        raise BadAddress(f"{address}: cannot listen there: {error.strerror or error}") from error
    bound.setblocking(False)
    return bound


class Tcp(Transport):
    """See the module."""

    options = OPTIONS

    def listen(self, address: Address, options: Mapping[str, Any]) -> TcpListening:
        """Binds the port."""
        return TcpListening(address, options)

    def dial(self, address: Address, options: Mapping[str, Any]) -> TcpConnection:
        """Connects to the first address of the host that answers."""
        return TcpConnection(str(address), options, addresses=_look_up(address, listening=False))
