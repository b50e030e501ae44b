"""``ipc://path`` and ``ipc://@abstract``: Sockets of one machine.

A Unix stream socket at the path is where they meet; the messages go through shared memory. Dialer and listener send one
hello each: u32 BE length, then a msgpack map ``{multisocket: version, segment, pipe, receives, pid}``, or
``{refused: why}``. Then the connection is silent. One byte and its end say that the pipe was closed on purpose; its end
alone says that the process is gone.

The peer must be of the same user, as the kernel tells it.

With ``raw=True`` there is no hello: the socket carries bytes of a program that knows nothing of all this.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import names
from ..address import Address
from ..background import background
from ..descriptors import own
from ..errors import AddressInUse, BadAddress, BadMessage, ConnectionRefused, Error, Timeout
from ..late import late
from ..options import RAW, Option
from .acceptor import Acceptor
from .hello import HANDSHAKE_TIMEOUT, Hello
from .interface import Connection, Listening, Transport
from .network import Network

if TYPE_CHECKING:
    import socket

    import msgpack

    from ..connector import Connector, Dialer
    from . import Bound
else:
    msgpack = late("msgpack")
    socket = late("socket")

VERSION = 1
BACKLOG = 4096
_LONGEST_PATH = 107
_LONGEST_HELLO = 4096
_GOOD_BYE = b"\0"


class Ipc:
    """See the module."""

    options: Mapping[str, Option] = RAW

    def __init__(self) -> None:
        self._raw = Network(_RawUnix())

    def listen(self, address: Address, connector: Connector, options: Mapping[str, Any]) -> Bound:
        """Binds the path. One that nobody listens on any more is replaced."""
        if options["raw"]:
            return self._raw.listen(address, connector, options)
        return _Bound(address, connector)

    def dial(self, address: Address, connector: Connector, dialer: Dialer) -> None:
        """Connects at once; hello goes on in the background thread."""
        if dialer.options["raw"]:
            self._raw.dial(address, connector, dialer)
            return
        connection = _connect(address)
        try:
            ours = connector.offer()
        except BaseException:
            connection.close()
            raise
        link = _Dialing(connection, connector, ours, str(address), dialer)
        background().call(link.start)


# --- paths ---


def _unix_path(address: Address) -> str:
    """What the kernel takes for it: abstract names begin with a zero byte."""
    path = address.location
    if "\0" in path:
        raise BadAddress(f"{str(address)!r}: a path holds no zero byte")
    size = len(os.fsencode(path))
    if size > _LONGEST_PATH:
        raise BadAddress(
            f"{address}: the path has {size} bytes, a socket's has at most {_LONGEST_PATH}; take a shorter"
        )
    return "\0" + path[1:] if path.startswith("@") else path


def _new_socket() -> socket.socket:
    return own(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))


def _connect(address: Address) -> socket.socket:
    path = _unix_path(address)
    connection = _new_socket()
    connection.setblocking(False)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise _why_not_connected(address, error) from error
    return connection


def _why_not_connected(address: Address, error: OSError) -> Error:
    if isinstance(error, FileNotFoundError):
        return ConnectionRefused(f"nobody listens at {address}: there is no such path")
    if isinstance(error, BlockingIOError):
        return ConnectionRefused(f"too many wait for a connection at {address} already")
    if error.errno == errno.ENOTSOCK or (
        isinstance(error, ConnectionRefusedError) and _is_other_file(address.location)
    ):
        return BadAddress(f"{address} is no socket: it is another kind of file")
    if isinstance(error, ConnectionRefusedError):
        return ConnectionRefused(f"nobody listens at {address} any more")
    return ConnectionRefused(f"could not connect to {address}: {error}")


def _is_other_file(path: str) -> bool:
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _bind_path(listening: socket.socket, address: Address, path: str) -> None:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(names.locked_folder_of(path))
        except OSError as error:
            raise BadAddress(f"ipc://{path}: cannot listen in that folder: {error.strerror}") from error
        if names.is_stale_socket(path):
            os.unlink(path)
        elif _is_other_file(path):
            raise BadAddress(f"{address}: there is a file that is no socket; choose another path, or remove it")
        names.add_socket_path(path)
        try:
            listening.bind(path)
            listening.listen(BACKLOG)
        except OSError as error:
            names.remove_socket_path(path)
            raise _why_not_bound(address, error) from error


def _why_not_bound(address: Address, error: OSError) -> Error:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{address} is in use: a living process listens there")
    return BadAddress(f"{address}: cannot listen there: {error.strerror}")


class _Place:
    """A listening socket, and its file."""

    def __init__(self, address: Address) -> None:
        self._path = _unix_path(address)
        self.socket = _new_socket()
        try:
            if self._is_abstract:
                self._bind_abstract(address)
            else:
                _bind_path(self.socket, address, self._path)
                # The working directory may be another one when it is closed.
                self._path = os.path.abspath(self._path)
                self._file = os.stat(self._path)
        except BaseException:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    @property
    def _is_abstract(self) -> bool:
        return self._path.startswith("\0")

    def _bind_abstract(self, address: Address) -> None:
        try:
            self.socket.bind(self._path)
            self.socket.listen(BACKLOG)
        except OSError as error:
            raise _why_not_bound(address, error) from error

    def fileno(self) -> int:
        """Readable when somebody connects."""
        return self.socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection; None: nobody waits."""
        try:
            connection = own(lambda: self.socket.accept()[0])
        except BlockingIOError:
            return None
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        """Its file goes first."""
        self.socket.close()

    def remove_file(self) -> None:
        """Nobody can find it any more."""
        if self._is_abstract:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), self._file):
                os.unlink(self._path)
        names.remove_socket_path(self._path)


class _Bound:
    """Accepts Sockets at a place."""

    def __init__(self, address: Address, connector: Connector) -> None:
        self.address = str(address)
        self._process = os.getpid()
        self._connector = connector
        self._place = _Place(address)
        self._acceptor = Acceptor(self._place, self._welcome)

    def _welcome(self, connection: socket.socket) -> None:
        _Accepted(connection, self._connector, self.address).start()

    def close(self) -> None:
        if self._process != os.getpid():  # inherited by fork: it is the parent's
            return
        self._place.remove_file()
        self._acceptor.stop()


# --- connections ---


def _check_peer(connection: socket.socket, address: str) -> None:
    """That it is of the same user, as the kernel knows it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    if user != os.geteuid():
        raise ConnectionRefused(f"the peer at {address} is of user {user}, not of ours ({os.geteuid()})")


class _Connection:
    """One end: first hello, then silence. Lives in the background thread, but for ``close``."""

    def __init__(self, connection: socket.socket, connector: Connector, address: str) -> None:
        self._socket = connection
        self._connector = connector
        self._address = address
        self._received = b""
        self._ours: Hello | None = None
        self._is_open = False
        self._closed = False
        self._timer = background().call_later(HANDSHAKE_TIMEOUT, self._too_late)

    def start(self) -> None:
        background().watch(self._socket, self._readable)

    def _readable(self) -> None:
        if self._closed:  # by its own time limit, in this very round
            return
        try:
            data = self._socket.recv(_LONGEST_HELLO)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self._is_open:
            self._ended(died=not data)
            return
        self._received += data
        try:
            body = _whole_hello(self._received)
            if body is not None:
                self._timer.cancel()
                self._greeted(_read_hello(body))
                if len(self._received) > 4 + len(body):
                    self._ended(died=False)  # good-bye came right behind
            elif not data:
                raise ConnectionRefused(f"the peer at {self._address} hung up before it said hello")
        except Exception as error:
            self._fail(error)

    def _ended(self, *, died: bool) -> None:
        if self._ours is not None:
            self._connector.ended(self._ours.pipe, died=died)

    def _too_late(self) -> None:
        if not self._is_open:
            self._fail(Timeout(f"the peer at {self._address} did not say hello within {HANDSHAKE_TIMEOUT} s"))

    def _greeted(self, theirs: Hello) -> None:
        raise NotImplementedError

    def _fail(self, error: Exception) -> None:
        self.close()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(data, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._send(_GOOD_BYE)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        background().end_with(self._close)

    def _close(self) -> None:
        background().unwatch(self._socket)
        self._socket.close()


class _Accepted(_Connection):
    """The listener's end: opens its pipe first, then answers, so that whoever gets the answer can be answered."""

    def _greeted(self, theirs: Hello) -> None:
        _check_peer(self._socket, self._address)
        self._ours = ours = self._connector.offer()
        self._connector.open(ours, theirs, self, self._address, None)
        self._is_open = True
        self._send(_hello_bytes(ours))

    def _fail(self, error: Exception) -> None:
        self._send(_frame({"refused": str(error)}))
        self.close()


class _Dialing(_Connection):
    """The dialer's end."""

    def __init__(
        self, connection: socket.socket, connector: Connector, ours: Hello, address: str, dialer: Dialer
    ) -> None:
        super().__init__(connection, connector, address)
        self._ours: Hello = ours  # pyright: ignore[reportIncompatibleVariableOverride]
        self._dialer = dialer
        self._reserved = True

    def start(self) -> None:
        super().start()
        self._send(_hello_bytes(self._ours))

    def _greeted(self, theirs: Hello) -> None:
        _check_peer(self._socket, self._address)
        self._reserved = False  # open takes it back itself
        self._connector.open(self._ours, theirs, self, self._address, self._dialer)
        self._is_open = True
        self._dialer.connected()

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._reserved:
            self._reserved = False
            self._connector.withdraw(self._ours)
        self._dialer.failed(error)


# --- raw: without hello ---


class _RawConnection(Connection):
    """A socket whose bytes are contents."""

    is_plain = True

    def __init__(self, connection: socket.socket, address: str) -> None:
        self._socket = connection
        self._address = address

    def fileno(self) -> int:
        """See ``Connection``, as of all these."""
        return self._socket.fileno()

    def proceed(self) -> bool:
        """Connected it is already."""
        _check_peer(self._socket, self._address)
        return True

    def read(self, most: int) -> bytes | None:
        """Not called: its descriptor is given away."""
        raise NotImplementedError

    def write(self, data: memoryview) -> int:
        """Not called: its descriptor is given away."""
        raise NotImplementedError

    def detach(self) -> None:
        """It is the carrier's now."""
        self._socket.detach()

    def close(self) -> None:
        """Ends it."""
        self._socket.close()


class _RawListening(Listening):
    """Accepts programs at a place."""

    def __init__(self, address: Address) -> None:
        self.address = str(address)
        self._place = _Place(address)

    def fileno(self) -> int:
        """See ``Listening``, as of all these."""
        return self._place.fileno()

    def accept(self) -> _RawConnection | None:
        """The next program."""
        connection = self._place.accept()
        return None if connection is None else _RawConnection(connection, self.address)

    def close(self) -> None:
        """Removes the file too."""
        self._place.remove_file()
        self._place.close()


class _RawUnix(Transport):
    """Unix sockets as they are."""

    def listen(self, address: Address, options: Mapping[str, Any]) -> _RawListening:
        """Binds the path."""
        return _RawListening(address)

    def dial(self, address: Address, options: Mapping[str, Any]) -> _RawConnection:
        """Connects at once."""
        return _RawConnection(_connect(address), str(address))


# --- hello ---


def _frame(content: dict[str, Any]) -> bytes:
    body = msgpack.packb(content)
    return struct.pack(">I", len(body)) + bytes(body)


def _hello_bytes(hello: Hello) -> bytes:
    return _frame(
        {
            "multisocket": VERSION,
            "segment": hello.segment,
            "pipe": hello.pipe,
            "receives": hello.receives,
            "pid": hello.pid,
            "pid_space": _own_pid_space(),
        }
    )


def _whole_hello(received: bytes) -> bytes | None:
    """The body of a frame, or None while some of it is missing."""
    if len(received) < 4:
        return None
    (size,) = struct.unpack_from(">I", received)
    if size > _LONGEST_HELLO:
        raise BadMessage("what the peer says is no hello: is it a multisocket?")
    return received[4 : 4 + size] if len(received) >= 4 + size else None


def _read_hello(body: bytes) -> Hello:
    try:
        said = msgpack.unpackb(body)
    except Exception as error:
        raise BadMessage("what the peer says is no hello: is it a multisocket?") from error
    if not isinstance(said, dict):
        raise BadMessage("what the peer says is no hello: is it a multisocket?")
    if "refused" in said:
        raise ConnectionRefused(str(said["refused"]))
    if said.get("multisocket") != VERSION:
        raise ConnectionRefused(f"the peer speaks version {said.get('multisocket')!r} of the protocol, we {VERSION}")
    segment, pipe, receives, pid = (said.get(name) for name in ("segment", "pipe", "receives", "pid"))
    if not names.is_segment_name(segment) or type(pipe) is not int or not 0 < pipe < 2**32:
        raise BadMessage("the peer's hello is broken")
    _check_pid_space(said.get("pid_space"))
    return Hello(str(segment), pipe, bool(receives), pid if isinstance(pid, int) else 0)


def _own_pid_space() -> int:
    """Tells PID namespaces from each other; 0 where it cannot be told."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _check_pid_space(theirs: object) -> None:
    """Locks in shared memory know their holders by thread ids, which mean others in another PID namespace."""
    ours = _own_pid_space()
    if theirs and ours and theirs != ours:
        raise ConnectionRefused(
            "the peer is in another PID namespace (container), where shared memory cannot be locked safely: let both"
            " have the same one (--pid=container:... or --pid=host), or connect by tcp"
        )
