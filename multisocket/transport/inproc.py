"""``inproc://name``: Sockets of one process, connected by a call."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ..address import Address
from ..errors import AddressInUse, ConnectionRefused

if TYPE_CHECKING:
    from ..connector import Connector, Dialer

_lock = threading.Lock()
_bound: dict[str, _Bound] = {}


def _forget_parents() -> None:
    """A child made by fork has none of its parent's Sockets to connect to."""
    global _lock
    _lock = threading.Lock()
    _bound.clear()


os.register_at_fork(after_in_child=_forget_parents)


class _Bound:
    def __init__(self, address: Address, connector: Connector) -> None:
        self.address = str(address)
        self.connector = connector
        self._name = address.location

    def close(self) -> None:
        with _lock:
            if _bound.get(self._name) is self:
                del _bound[self._name]


class _End:
    """One side's link: closing it ends the pipe of the other side."""

    def __init__(self) -> None:
        self.other: tuple[Connector, int] | None = None

    def close(self) -> None:
        other, self.other = self.other, None
        if other is not None:
            connector, pipe = other
            connector.ended(pipe, died=False)


class Inproc:
    """See the module."""

    def listen(self, address: Address, connector: Connector) -> _Bound:
        """Takes the name."""
        bound = _Bound(address, connector)
        with _lock:
            if address.location in _bound:
                raise AddressInUse(f"{address} is in use: another Socket of this process listens there")
            _bound[address.location] = bound
        return bound

    def dial(self, address: Address, connector: Connector, dialer: Dialer) -> None:
        """Opens both ends, at once."""
        with _lock:
            bound = _bound.get(address.location)
        if bound is None:
            raise ConnectionRefused(f"nobody in this process listens at {address}: listen first")
        _join(connector, bound.connector, str(address), dialer)
        dialer.connected()


def _join(ours: Connector, theirs: Connector, address: str, dialer: Dialer) -> None:
    our_hello = ours.offer()
    try:
        their_hello = theirs.offer()
    except BaseException:
        ours.withdraw(our_hello)
        raise
    our_end, their_end = _End(), _End()
    try:
        theirs.open(their_hello, our_hello, their_end, address, None)
    except BaseException:
        ours.withdraw(our_hello)
        raise
    their_end.other = (ours, our_hello.pipe)
    our_end.other = (theirs, their_hello.pipe)
    try:
        ours.open(our_hello, their_hello, our_end, address, dialer)
    except BaseException:
        our_end.close()
        raise
