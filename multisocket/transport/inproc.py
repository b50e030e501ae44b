"""``inproc://name``: Sockets of one process, connected by a call."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..address import Address
from ..errors import AddressInUse, ConnectionRefused
from ..options import Option

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

    def __init__(self, connector: Connector, pipe: int) -> None:
        self._other = connector, pipe
        self.closed = False

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        connector, pipe = self._other
        connector.ended(pipe, died=False)


class Inproc:
    """See the module."""

    options: Mapping[str, Option] = {}

    def listen(self, address: Address, connector: Connector, options: Mapping[str, Any]) -> _Bound:
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
    their_end = _End(ours, our_hello.pipe)
    our_end = _End(theirs, their_hello.pipe)
    try:
        theirs.open(their_hello, our_hello, their_end, address, None)
    except BaseException:
        ours.withdraw(our_hello)
        raise
    try:
        ours.open(our_hello, their_hello, our_end, address, dialer)
    except BaseException:
        our_end.close()
        raise
    if their_end.closed:  # it was, before our side had a pipe to end
        ours.ended(our_hello.pipe, died=False)
