"""``ws://host:port/path`` and ``wss://…``: WebSocket, for browsers and whoever must come through a proxy.

Each message is one frame: binary with the subprotocol ``multisocket.binary`` (or none), text with ``multisocket.text``,
which carries the very same bytes. A listener takes both, and answers each peer as that one has asked. The framing and
the opening are the library ``websockets``' (extra ``ws``); only its part without input and output is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ..address import Address
from ..errors import BadMessage, BadOption, ConnectionRefused, NotSupported
from ..options import Option, flag, function, text
from . import tcp, tls
from .interface import Connection, Listening, Transport

try:
    from websockets.client import ClientProtocol
    from websockets.exceptions import NegotiationError
    from websockets.frames import CloseCode, Frame, Opcode
    from websockets.http11 import Request
    from websockets.protocol import State
    from websockets.server import ServerProtocol
    from websockets.typing import Subprotocol
    from websockets.uri import parse_uri
except ImportError as error:
    raise NotSupported("ws:// and wss:// need the library websockets: pip install 'multisocket[ws]'") from error

BINARY = "multisocket.binary"
TEXT = "multisocket.text"

# The library tells of every connection; so do we.
_log = logging.getLogger("multisocket.ws")
_log.setLevel(logging.WARNING)

# Meta and both paths, at most.
_LONGEST_HEAD = 8 + 2 * 4 * 255
_READ_MOST = 256 << 10

_OPTIONS: Mapping[str, Option] = {
    "path": text(None),
    "check_origin": flag(True),
    "origin_checker": function(),
    "text": flag(False),
}


class WsConnection(Connection):
    """WebSocket over another connection, which it makes first.

    :param protocol: the library's part, which says what to send and understands what comes.
    """

    is_framed = True

    def __init__(self, inner: Connection, protocol: ClientProtocol | ServerProtocol) -> None:
        self._inner = inner
        self._protocol = protocol
        self._unsent = b""
        self._is_connected = False
        self._is_done = False
        self._received: list[bytes] = []
        self.peer = inner.peer
        self.wants_write = inner.wants_write

    def fileno(self) -> int:
        """See ``Connection``, as of all these."""
        return self._inner.fileno()

    def proceed(self) -> bool:
        """Connects, then opens the WebSocket; later sends what is left."""
        done = self._inner.proceed() and self._proceed()
        self.wants_write = self._inner.wants_write or bool(self._unsent)
        return done

    def _proceed(self) -> bool:
        if not self._is_connected:
            self._is_connected = True
            self.peer = self._inner.peer
            self._begin()
        self._flush()
        while not self._is_done:
            data = self._inner.read(_READ_MOST)
            if data is None:
                return False
            if not data:
                raise ConnectionRefused(f"{self.peer} has hung up instead of opening a WebSocket")
            self._protocol.receive_data(data)
            self._open(self._protocol.events_received())
            self._flush()
        return True

    def _begin(self) -> None:
        """The first words."""

    def _open(self, events: Sequence[Any]) -> None:
        """Goes on with the opening."""
        raise NotImplementedError

    def _opened(self, events: Sequence[Any]) -> None:
        self._is_text = self._protocol.subprotocol == TEXT
        self._is_done = True
        self._collect(events)

    def read(self, most: int) -> bytes | None:
        """What frames hold."""
        while not self._received:
            data = self._inner.read(most)
            if data is None:
                return None
            if not data:
                return b""
            self._protocol.receive_data(data)
            ended = self._collect(self._protocol.events_received())
            self._flush()
            if self._protocol.parser_exc is not None:
                raise BadMessage(f"what the peer sends is no WebSocket: {self._protocol.parser_exc}")
            if ended and not self._received:
                return b""
        received, self._received = b"".join(self._received), []
        return received

    def _collect(self, events: Sequence[Any]) -> bool:
        """True: the peer has said good-bye."""
        for frame in events:
            if not isinstance(frame, Frame):
                continue
            if frame.opcode is Opcode.CLOSE:
                return True
            if frame.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT) and frame.data:
                self._received.append(bytes(frame.data))
        return False

    def write(self, data: memoryview) -> int:
        """One message, in one frame."""
        if self._unsent:
            return 0
        if self._protocol.state is not State.OPEN:
            raise BadMessage("the peer has closed the WebSocket")
        send = self._protocol.send_text if self._is_text else self._protocol.send_binary
        send(bytes(data))
        self._flush()
        return len(data)

    def _flush(self) -> None:
        self._unsent += b"".join(self._protocol.data_to_send())
        rest = memoryview(self._unsent)
        while rest and (taken := self._inner.write(rest)):
            rest = rest[taken:]
        self._unsent = bytes(rest)
        self.wants_write = bool(rest)

    def finish(self) -> bool:
        """Says good-bye, and ends our side."""
        if self._is_done and self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
        return not self._unsent and self._inner.finish()

    def close(self) -> None:
        """Ends it."""
        self._inner.close()


class _Dialing(WsConnection):
    """The dialer's end."""

    def __init__(self, inner: Connection, address: Address, options: Mapping[str, Any]) -> None:
        _refuse_raw(options)
        path = _path(address, options)
        uri = parse_uri(f"{address.scheme}://{address.location.partition('/')[0]}{path}")
        protocol = ClientProtocol(
            uri,
            subprotocols=[Subprotocol(TEXT if options["text"] else BINARY)],
            max_size=_most(options),
            logger=_log,
        )
        super().__init__(inner, protocol)
        self._client = protocol
        self._wants_text = options["text"]
        self._address = address

    def _begin(self) -> None:
        self._client.send_request(self._client.connect())

    def _open(self, events: Sequence[Any]) -> None:
        if self._client.handshake_exc is not None:
            why = f"{self._address} does not open a WebSocket: {self._client.handshake_exc}"
            raise ConnectionRefused(why) from self._client.handshake_exc
        if self._client.state is State.OPEN:
            self._opened(events)
            self._is_text = self._wants_text  # whatever a simple server says of it


class _Accepted(WsConnection):
    """The listener's end."""

    def __init__(self, inner: Connection, path: str, options: Mapping[str, Any]) -> None:
        protocol = ServerProtocol(select_subprotocol=_select, subprotocols=None, max_size=_most(options), logger=_log)
        super().__init__(inner, protocol)
        self._server = protocol
        self._path = path
        self._options = options

    def _open(self, events: Sequence[Any]) -> None:
        if not events:
            if self._server.handshake_exc is not None:
                raise ConnectionRefused(f"not a WebSocket: {self._server.handshake_exc}")
            return
        request = events[0]
        refusal = self._why_not(request)
        response = self._server.accept(request) if refusal is None else self._server.reject(*refusal)
        self._server.send_response(response)
        self._flush()
        if self._server.state is not State.OPEN:
            raise ConnectionRefused(f"its WebSocket was refused: {response.status_code} {response.reason_phrase}")
        self._opened(events[1:])

    def _why_not(self, request: Request) -> tuple[int, str] | None:
        if urlsplit(request.path).path != self._path:
            return 404, f"Nobody listens at this path, but at {self._path}.\n"
        if not self._is_origin_right(request):
            return 403, "Pages of this origin may not connect.\n"
        return None

    def _is_origin_right(self, request: Request) -> bool:
        """Only browsers tell an origin: the site whose page connects."""
        origin = request.headers.get("Origin")
        checker: Callable[[str], object] | None = self._options["origin_checker"]
        if origin is None or not self._options["check_origin"]:
            return True
        if checker is not None:
            return bool(checker(origin))
        return urlsplit(origin).netloc.lower() == request.headers.get("Host", "").lower()


def _select(_: ServerProtocol, offered: Sequence[Any]) -> Any:
    """The first that we know; none where none is offered."""
    for one in offered:
        if one in (BINARY, TEXT):
            return one
    if offered:
        raise NegotiationError(f"only {BINARY} and {TEXT} are spoken here")
    return None


def _path(address: Address, options: Mapping[str, Any]) -> str:
    path: str = options["path"] if options["path"] is not None else address.location.partition("/")[2]
    return "/" + path.removeprefix("/")


def _refuse_raw(options: Mapping[str, Any]) -> None:
    if options["raw"]:
        raise BadOption("a WebSocket carries messages, not plain bytes: raw pipes go over tcp, tls+tcp and ipc")


def _most(options: Mapping[str, Any]) -> int:
    return int(options["max_recv_content_length"]) + _LONGEST_HEAD


class WsListening(Listening):
    """Accepts with WebSocket over another transport."""

    def __init__(self, inner: Listening, address: Address, options: Mapping[str, Any]) -> None:
        _refuse_raw(options)
        self._inner = inner
        self._path = _path(address, options)
        self._options = options
        self.address = inner.address

    def fileno(self) -> int:
        """See ``Listening``, as of all these."""
        return self._inner.fileno()

    def accept(self) -> WsConnection | None:
        """The next connection."""
        inner = self._inner.accept()
        return None if inner is None else _Accepted(inner, self._path, self._options)

    def close(self) -> None:
        """Stops."""
        self._inner.close()


class Ws(Transport):
    """``ws``."""

    options: Mapping[str, Option] = {**tcp.OPTIONS, **_OPTIONS}

    def listen(self, address: Address, options: Mapping[str, Any]) -> WsListening:
        """Binds the port."""
        return WsListening(tcp.TcpListening(address, options), address, options)

    def dial(self, address: Address, options: Mapping[str, Any]) -> WsConnection:
        """Connects."""
        return _Dialing(tcp.Tcp().dial(address, options), address, options)


class Wss(Transport):
    """``wss``: the same over TLS."""

    options: Mapping[str, Option] = {**tls.OPTIONS, **_OPTIONS}

    def listen(self, address: Address, options: Mapping[str, Any]) -> WsListening:
        """Binds the port."""
        return WsListening(tls.TlsListening(address, options), address, options)

    def dial(self, address: Address, options: Mapping[str, Any]) -> WsConnection:
        """Connects."""
        return _Dialing(tls.dial(address, options), address, options)
