"""Transports by scheme: what connects two Sockets.

A transport makes connections and says hello over them; the messages of Sockets on one machine then go through shared
memory, whatever the transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..address import Address
from ..errors import BadTransport

if TYPE_CHECKING:
    from ..connector import Connector, Dialer


class Bound(Protocol):
    """A listening end."""

    address: str

    def close(self) -> None:
        """Stops listening."""


class Transport(Protocol):
    """How to listen and dial for one scheme."""

    def listen(self, address: Address, connector: Connector) -> Bound:
        """Starts accepting connections for a connector.

        :raises AddressInUse: somebody alive listens there.
        :raises BadAddress: nobody can listen there.
        """

    def dial(self, address: Address, connector: Connector, dialer: Dialer) -> None:
        """Makes one connection, and calls ``dialer.connected()`` or ``dialer.failed(error)``, now or later.

        :raises ConnectionRefused: at once.
        """


_known: dict[str, Transport] = {}


def register(scheme: str, transport: Transport) -> None:
    """Makes a transport known under a scheme."""
    _known[scheme] = transport


def find(address: Address) -> Transport:
    """The transport for an address.

    :raises BadTransport: none is known for its scheme.
    """
    if address.scheme not in _known:
        raise BadTransport(f"no transport for {address.scheme!r} in {address}; there are: {', '.join(sorted(_known))}")
    return _known[address.scheme]


from . import inproc, ipc  # noqa: E402 - they register themselves

register("inproc", inproc.Inproc())
register("ipc", ipc.Ipc())
