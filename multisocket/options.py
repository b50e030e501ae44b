"""Options: their names, defaults and what values they take.

The tables say it to the program; the ``TypedDict`` classes at the end of this file say the same to type checkers and
editors, for ``**options: Unpack[SocketOptions]``. A test compares the two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .errors import BadOption

if TYPE_CHECKING:
    import ssl
    from typing import TypedDict
else:

    class TypedDict(dict):
        """What ``typing`` has would look at each of the names when this is imported, which takes long."""

        def __init_subclass__(cls, *, total: bool = True) -> None:
            return


class Option:
    """One option.

    :param default: its value when nothing is said.
    :param check: gives the value as it is used, or raises ValueError with what is expected instead.
    :param parse: makes a value of an address's text.
    """

    __slots__ = ("check", "default", "parse")

    def __init__(self, default: Any, check: Callable[[Any], Any], parse: Callable[[str], Any]) -> None:
        self.default = default
        self.check = check
        self.parse = parse


def flag(default: bool) -> Option:
    """True or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("True or False")
        return value

    return Option(default, check, _parse_flag)


def whole(default: int | None, least: int, most: int, unit: str, *, optional: bool = False) -> Option:
    """A whole number of some unit; None too where ``optional``."""

    def check(value: Any) -> int | None:
        if value is None and optional:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number of {unit} from {least} to {most}" + (" or None" if optional else ""))
        return value

    return Option(default, check, _or_none(int))


def seconds(default: float | None, *, optional: bool = False) -> Option:
    """A time of 0 seconds or more; None (for ever) too where ``optional``."""

    def check(value: Any) -> float | None:
        if value is None and optional:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value) or value < 0:
            raise ValueError("seconds, 0 or more" + (" or None" if optional else ""))
        return float(value)

    return Option(default, check, _or_none(float))


def text(default: str | None) -> Option:
    """A string, or None."""

    def check(value: Any) -> str | None:
        given = os.fspath(value) if isinstance(value, os.PathLike) else value
        if given is None or isinstance(given, str):
            return given
        raise ValueError("a string or a path")

    return Option(default, check, str)


def choice(*values: str) -> Option:
    """One of some words; the first is the default."""

    def check(value: Any) -> str:
        if value not in values:
            raise ValueError("one of " + ", ".join(values))
        return str(value)

    return Option(values[0], check, str)


def function() -> Option:
    """Something that can be called, or None. Not in an address."""

    def check(value: Any) -> Any:
        if value is not None and not callable(value):
            raise ValueError("something that can be called, or None")
        return value

    return Option(None, check, str)


def _parse_flag(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError("true or false")
    return known[text.lower()]


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() == "none" else parse(text)


_MOST = 0x7FFFFFFF

SOCKET: Mapping[str, Option] = {
    "no_recv": flag(False),
    "no_send": flag(False),
    "recv_queue_size": whole(65536, 1, _MOST, "messages"),
    "recv_queue_bytes": whole(4 << 20, 4096, 8 << 30, "bytes"),
    "max_recv_content_length": whole(0xFFFFFFFF, 1, 0xFFFFFFFF, "bytes"),
    "arena_limit": whole(8 << 30, 0, 1 << 40, "bytes"),
    "send_queue_size": whole(64, 1, _MOST, "messages"),
    "send_ttl": whole(16, 1, 255, "nodes"),
    "send_best_effort": flag(False),
    "send_timeout": seconds(None, optional=True),
    "recv_timeout": seconds(None, optional=True),
    "send_stop_timeout": seconds(5.0),
    "pipe_limit": whole(None, 1, 65535, "pipes", optional=True),
}

DIALER: Mapping[str, Option] = {
    "reconnect": flag(True),
    "min_reconnect_time": seconds(0.1),
    "max_reconnect_time": seconds(8.0),
    "dial_async": flag(False),
}

LISTENER: Mapping[str, Option] = {}

# Of pipes that carry bytes: raw ones, and those to other machines.
RAW: Mapping[str, Option] = {
    "raw": flag(False),
    "raw_recv_buffer_size": whole(4096, 1, 1 << 20, "bytes"),
    "close_on_eof": flag(True),
    "send_queue_bytes": whole(1 << 20, 4096, 8 << 30, "bytes"),
}
WIRE: Mapping[str, Option] = {**RAW, "max_recv_content_length": whole(256 << 20, 1, 0xFFFFFFFF, "bytes")}


def resolve(known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """All options with their values: those given, checked, and the defaults of the others.

    :raises BadOption: an unknown name, a wrong type, a value out of range.
    """
    values = {name: option.default for name, option in known.items()}
    for name, value in given.items():
        values[name] = _checked(known, name, value)
    return values


def from_address(known: Mapping[str, Option], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The options that stand in an address, from text to values.

    :raises BadOption: an unknown name, or text that is no such value.
    """
    values = {}
    for name, text in pairs:
        try:
            value = _find(known, name).parse(text)
        except ValueError:
            value = text
        values[name] = _checked(known, name, value)
    return values


def _find(known: Mapping[str, Option], name: str) -> Option:
    if name not in known:
        raise BadOption(f"there is no option {name!r} here; there are: {', '.join(sorted(known)) or 'none'}")
    return known[name]


def _checked(known: Mapping[str, Option], name: str, value: Any) -> Any:
    try:
        return _find(known, name).check(value)
    except BadOption:
        raise
    except ValueError as error:
        raise BadOption(f"option {name} takes {error}, not {value!r}") from None


# --- the same for type checkers ---


class CommonOptions(TypedDict, total=False):
    """Options of a Socket that every protocol takes."""

    recv_queue_size: int
    """Messages that may wait to be received. Default: 65536."""
    recv_queue_bytes: int
    """Bytes that may wait to be received. Default: 4 MiB."""
    max_recv_content_length: int
    """Bytes of a content that peers may send. Default: 4 GiB."""
    arena_limit: int
    """Bytes of large contents that may be on their way or read in place. Default: 8 GiB."""
    send_queue_size: int
    """Messages kept while no peer is connected. Default: 64."""
    send_ttl: int
    """Nodes that a message may pass. Default: 16."""
    send_timeout: float | None
    """Seconds that a send waits, when it says nothing itself; None for ever. Default: None."""
    recv_timeout: float | None
    """Seconds that a receive waits, when it says nothing itself; None for ever. Default: None."""
    send_stop_timeout: float
    """Seconds that ``close`` waits until what is kept has been sent. Default: 5."""


class _NoRecv(TypedDict, total=False):
    no_recv: bool
    """Discard what peers send. Default: False."""


class _NoSend(TypedDict, total=False):
    no_send: bool
    """Never send. Default: False."""


class _BestEffort(TypedDict, total=False):
    send_best_effort: bool
    """Drop a message instead of waiting for room. Default: False."""


class _PipeLimit(TypedDict, total=False):
    pipe_limit: int | None
    """Most connections at a time; None for no limit. Default: None."""


class SocketOptions(CommonOptions, _NoRecv, _NoSend, _BestEffort, _PipeLimit, total=False):
    """Of :class:`multisocket.Socket`, and of the protocols that take all of them."""


class PairOptions(CommonOptions, _NoRecv, _NoSend, _BestEffort, total=False):
    """Of :class:`multisocket.protocol.Pair`, which sets ``pipe_limit`` itself."""


class PushOptions(CommonOptions, _NoSend, _BestEffort, _PipeLimit, total=False):
    """Of :class:`multisocket.protocol.Push`, which sets ``no_recv`` itself."""


class PullOptions(CommonOptions, _NoRecv, _BestEffort, _PipeLimit, total=False):
    """Of :class:`multisocket.protocol.Pull`, which sets ``no_send`` itself."""


class PubSubOptions(CommonOptions, _BestEffort, _PipeLimit, total=False):
    """Of :class:`multisocket.protocol.Pub` and ``Sub``, whose Sockets both send and receive."""


class StreamOptions(CommonOptions, _PipeLimit, total=False):
    """Of :class:`multisocket.protocol.Stream`, whose Socket sends and receives and loses nothing."""

    window: int
    """Bytes that a peer may send ahead on each stream. Default: 256 KiB."""
    backlog: int
    """Streams that may wait to be accepted. Default: 128."""
    idle_time: float
    """Seconds of silence until a peer is asked whether it is there. Default: 30."""
    probe_interval: float
    """Seconds between such questions. Default: 1."""
    probes: int
    """Unanswered ones until a stream is broken. Default: 7."""


class ListenOptions(TypedDict, total=False):
    """Of ``listen``: those of all transports that come with multisocket. One that the address's transport does not know
    is refused at run time."""

    raw: bool
    """No framing: whoever is at the other end knows nothing of messages. Default: False."""
    raw_recv_buffer_size: int
    """Bytes of a raw message at most. Default: 4096."""
    close_on_eof: bool
    """A raw pipe closes when its peer has ended its side. Default: True."""
    send_queue_bytes: int
    """Bytes that may wait to be written. Default: 1 MiB."""
    max_recv_content_length: int
    """Bytes of a content that the peer may send. Default: 256 MiB."""
    no_delay: bool
    """tcp: small messages are not held back. Default: True."""
    keep_alive: bool
    """tcp: idle connections are probed. Default: True."""
    keep_alive_period: float | None
    """tcp: seconds between probes; None as the system has it. Default: None."""
    read_buffer: int | None
    """tcp: bytes of the system's buffer; None as the system has it. Default: None."""
    write_buffer: int | None
    """tcp: bytes of the system's buffer; None as the system has it. Default: None."""
    context: ssl.SSLContext | None
    """TLS: a context in place of the files below. Default: None."""
    certificate: str | os.PathLike[str] | None
    """TLS: a file (PEM). Default: None."""
    key: str | os.PathLike[str] | None
    """TLS: a file (PEM); None: the key stands in ``certificate``. Default: None."""
    ca: str | os.PathLike[str] | None
    """TLS: a file with the authorities that are believed; None: the system's. Default: None."""
    server_name: str | None
    """TLS: the name that the listener's certificate must be for; None: the dialed host. Default: None."""
    verify: bool
    """TLS, dialing: check the certificate and its name. Default: True."""
    client_certificate: Literal["none", "optional", "required"]
    """TLS, listening: whether who dials shows a certificate. Default: "none"."""
    path: str | None
    """WebSocket: others get 404; None: the address's. Default: None."""
    check_origin: bool
    """WebSocket: a browser's page must be of the listener's own host. Default: True."""
    origin_checker: Callable[[str], object] | None
    """WebSocket: says of an origin whether it is welcome. Default: None."""
    text: bool
    """WebSocket, dialing: ask for ``multisocket.text``. Default: False."""


class DialOptions(ListenOptions, total=False):
    """Of ``dial``."""

    reconnect: bool
    """Connect again when the connection is lost. Default: True."""
    min_reconnect_time: float
    """Seconds before the first new attempt. Default: 0.1."""
    max_reconnect_time: float
    """Seconds between attempts at most. Default: 8."""
    dial_async: bool
    """Return at once, and keep trying. Default: False."""
