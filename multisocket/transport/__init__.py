"""Transports by scheme: what connects two Sockets.

``inproc`` and ``ipc`` make two Sockets of one machine known to each other; their messages then go through shared
memory. All others make connections that carry bytes, and for one of your own there are :class:`Transport`,
:class:`Listening`, :class:`Connection` and :func:`register`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ..address import Address
from ..errors import BadTransport
from ..exports import publish
from ..options import Option
from .interface import Connection, Listening, Transport

if TYPE_CHECKING:
    from ..connector import Connector, Dialer


class Bound(Protocol):
    """A listening end."""

    address: str

    def close(self) -> None:
        """Stops listening."""


class Scheme(Protocol):
    """How a Socket listens and dials for one scheme."""

    options: Mapping[str, Option]
    """Besides those that all have."""

    def listen(self, address: Address, connector: Connector, options: Mapping[str, Any]) -> Bound:
        """Starts accepting connections for a connector.

        :raises AddressInUse: somebody alive listens there.
        :raises BadAddress: nobody can listen there.
        """
        ...

    def dial(self, address: Address, connector: Connector, dialer: Dialer) -> None:
        """Makes one connection, and calls ``dialer.connected()`` or ``dialer.failed(error)``, now or later.

        :raises ConnectionRefused: at once.
        """


_known: dict[str, Scheme] = {}


def register(scheme: str, transport: Transport) -> None:
    """Makes a transport known under a scheme: ``scheme://…`` can be listened on and dialed then.

    Do it in every process that connects by it.
    """
    from .network import Network

    _known[scheme] = Network(transport)


# Those that come with this package are imported when they are first needed: module and class.
_LATER = {
    "inproc": ("inproc", "Inproc"),
    "ipc": ("ipc", "Ipc"),
    "tcp": ("tcp", "Tcp"),
    "tls+tcp": ("tls", "Tls"),
    "ws": ("ws", "Ws"),
    "wss": ("ws", "Wss"),
}


def find(address: Address) -> Scheme:
    """How to listen and dial at an address.

    :raises BadTransport: none is known for its scheme.
    """
    if address.scheme not in _known and address.scheme in _LATER:
        module, name = _LATER[address.scheme]
        made: Transport | Scheme = getattr(import_module(f".{module}", __name__), name)()
        if isinstance(made, Transport):
            register(address.scheme, made)
        else:
            _known[address.scheme] = made
    if address.scheme not in _known:
        there_are = ", ".join(sorted({*_known, *_LATER}))
        raise BadTransport(f"no transport for {address.scheme!r} in {address}; there are: {there_are}")
    return _known[address.scheme]


__all__ = ["Connection", "Listening", "Transport", "find", "register"]

publish(__name__, __all__, globals())
