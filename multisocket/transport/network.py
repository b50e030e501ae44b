"""Pipes over connections: from the handshake to the end.

A :class:`Network` makes a scheme of a transport (see ``interface``). A connection's handshake goes on in the background
thread. Then it becomes a wire (``shm/wire.h``): its bytes are moved natively, or, where they go through Python, by a
thread of their own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import carrier
from ..address import Address
from ..background import Background, Timer, background, is_background_thread, mover
from ..errors import Closed, Error, Timeout
from ..late import log
from ..options import WIRE, Option
from ..shm import Wire
from .acceptor import Acceptor
from .hello import HANDSHAKE_TIMEOUT
from .interface import Connection, Listening, Transport

if TYPE_CHECKING:
    from ..connector import Connector, Dialer
    from .hello import Hello


LINGER = 5.0
"""Seconds that a pipe which is closed may take to send what is left."""

_READ_MOST = 256 << 10
# One connection may read, and write, for so long before others come, seconds.
_TURN = 0.005
_RETRY = 0.001


class Network:
    """A scheme whose messages go over connections of a transport."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.options: Mapping[str, Option] = {**WIRE, **transport.options}

    def listen(self, address: Address, connector: Connector, options: Mapping[str, Any]) -> Bound:
        """Starts accepting connections."""
        return Bound(self.transport.listen(address, options), connector, options)

    def dial(self, address: Address, connector: Connector, dialer: Dialer) -> None:
        """Begins a connection. Not in the background thread: looking up a name may take long."""
        if is_background_thread():
            threading.Thread(target=self._dial_safely, args=(address, connector, dialer), daemon=True).start()
        else:
            self._dial(address, connector, dialer)

    def _dial_safely(self, address: Address, connector: Connector, dialer: Dialer) -> None:
        try:
            self._dial(address, connector, dialer)
        except Exception as error:
            dialer.failed(error)

    def _dial(self, address: Address, connector: Connector, dialer: Dialer) -> None:
        ours = connector.offer()
        try:
            connection = self.transport.dial(address, dialer.options)
        except BaseException:
            connector.withdraw(ours)
            raise
        opening = _Opening(connection, connector, ours, str(address), dialer.options, dialer)
        background().call(opening.start)


class Bound:
    """A listening end."""

    def __init__(self, listening: Listening, connector: Connector, options: Mapping[str, Any]) -> None:
        self._connector = connector
        self._options = options
        self._process = os.getpid()
        self.address = listening.address
        self._acceptor = Acceptor(listening, self._welcome)

    def _welcome(self, connection: Connection) -> None:
        try:
            ours = self._connector.offer()
        except Error as error:
            log.info("refused a connection of %s at %s: %s", connection.peer, self.address, error)
            connection.close()
            return
        _Opening(connection, self._connector, ours, self.address, self._options, None).start()

    def close(self) -> None:
        """Stops listening."""
        if self._process != os.getpid():  # inherited by fork: it is the parent's
            return
        if is_background_thread():
            self._acceptor.close()
            return
        self._acceptor.stop()
        self._acceptor.stopped.wait(1.0)  # so that the address is free on return


class _Opening:
    """A connection until its handshake is done. In the background thread."""

    def __init__(
        self,
        connection: Connection,
        connector: Connector,
        ours: Hello,
        address: str,
        options: Mapping[str, Any],
        dialer: Dialer | None,
    ) -> None:
        self._connection = connection
        self._connector = connector
        self._ours = ours
        self._address = address
        self._options = options
        self._dialer = dialer
        self._done = False
        self._timer = background().call_later(HANDSHAKE_TIMEOUT, self._too_late)

    def start(self) -> None:
        """Begins."""
        self._proceed()

    def _proceed(self) -> None:
        background().unwatch(self._connection)
        if self._done:
            return
        try:
            if self._connection.proceed():
                self._open()
                return
        except Exception as error:
            self._fail(error)
            return
        background().watch(self._connection, self._proceed, self._proceed if self._connection.wants_write else None)

    def _too_late(self) -> None:
        if not self._done:
            self._fail(Timeout(f"no connection with {self._address} was made within {HANDSHAKE_TIMEOUT} s"))

    def _open(self) -> None:
        self._done = True
        self._timer.cancel()
        try:
            kind = Carried if self._connection.is_plain else Moved
            link = kind(self._connection, self._connector, self._options)
            # From here on the connector withdraws the pipe itself.
            self._connector.open_wire(
                self._ours, link, self._address, self._connection.peer, self._options, self._dialer
            )
        except Exception as error:
            self._connection.close()
            self._tell_failed(error)
            return
        if self._dialer is not None:
            self._dialer.connected()

    def _fail(self, error: Exception) -> None:
        self._done = True
        self._timer.cancel()
        background().unwatch(self._connection)
        self._connection.close()
        self._connector.withdraw(self._ours)
        self._tell_failed(error)

    def _tell_failed(self, error: Exception) -> None:
        if self._dialer is not None:
            self._dialer.failed(error)
        else:
            log.info("a connection of %s at %s came to nothing: %s", self._connection.peer, self._address, error)


class WireLink:
    """What the connector has of a connection: how to begin and to end it."""

    def __init__(self, connection: Connection, connector: Connector, options: Mapping[str, Any]) -> None:
        self._connection = connection
        self._connector = connector
        self.options = options
        self.wire: Wire

    def begin(self, wire: Wire) -> None:
        """The pipe is open: bytes may come and go."""
        self.wire = wire
        wire.driver = self
        carrier.carry(wire, self._descriptor())

    def _descriptor(self) -> int:
        """Whose bytes the carrier moves; -1: none."""
        return -1

    def close(self, linger: float = LINGER) -> None:
        """Sends what is left, for so many seconds, and ends the connection."""
        self.wire.finish(linger)

    def on_end(self, reason: str) -> None:
        """The connection has ended, or must."""
        self._connector.broken(self.wire.pipe, reason, of=self)

    def on_writable(self) -> None:
        """See ``carrier.Driver``."""

    def on_gone(self) -> None:
        """It is closed."""
        self.wire.driver = None  # they refer to each other
        self._connector.link_is_gone(self)


class Carried(WireLink):
    """A connection whose bytes are moved natively."""

    def begin(self, wire: Wire) -> None:
        """The pipe is open: bytes may come and go."""
        super().begin(wire)
        self._connection.detach()

    def _descriptor(self) -> int:
        return self._connection.fileno()


class Moved(WireLink):
    """A connection whose bytes go through Python, in the thread of the mover."""

    def __init__(self, connection: Connection, connector: Connector, options: Mapping[str, Any]) -> None:
        super().__init__(connection, connector, options)
        self._thread: Background = mover()
        self._unread = memoryview(b"")
        self._outgoing = memoryview(b"")
        self._is_over = False
        self._due: Timer | None = None
        self._is_closed = False
        self._is_finishing = False
        # What is in the outbox is for others now.
        self._is_broken = False

    def begin(self, wire: Wire) -> None:
        """The pipe is open: bytes may come and go."""
        super().begin(wire)
        self._thread.call(self._start)

    def close(self, linger: float = LINGER) -> None:
        """Sends what is left, for so many seconds, and ends the connection."""
        self._thread.end_with(lambda: self._finish(linger if self._thread.is_running else 0))

    def on_writable(self) -> None:
        """There is something to be written."""
        self._thread.call(self._ready)

    # In the mover's thread:

    def _start(self) -> None:
        if self.options["raw"]:
            self._guarded(self.wire.go_on)
        self._ready()

    def _watch(self) -> None:
        self._thread.unwatch(self._connection)
        reads = not (self._unread or self.wire.blocked or self._is_over or self._is_finishing)
        writes = self._connection.wants_write
        if self._is_closed or not (reads or writes):
            return
        self._thread.watch(self._connection, self._ready if reads else None, self._ready if writes else None)

    def _ready(self) -> None:
        if self._is_closed or (self._is_broken and not self._is_finishing):
            return
        if self._guarded(self._move):
            self._watch()

    def _move(self) -> None:
        self._connection.proceed()
        if not self._is_finishing:
            self._read()
        if self._is_broken:
            return
        self._write()
        if self._is_finishing and self.wire.is_idle and not self._connection.wants_write:
            self._say_good_bye()

    def _look_again(self, delay: float) -> None:
        """At most one such look is due, however often the connection is looked at meanwhile."""
        if self._due is None:
            self._due = self._thread.call_later(delay, self._look)

    def _look(self) -> None:
        self._due = None
        self._ready()

    def _guarded(self, call: Any) -> bool:
        """Whatever goes wrong ends this connection, and nothing else."""
        try:
            call()
        except Closed as error:
            # Our Socket is: nobody reads any more, but what it has sent still goes.
            if self._is_finishing:
                self._break(str(error))
            else:
                self._finish(LINGER)
            return False
        except Exception as error:
            self._break(str(error))
            return False
        return True

    def _break(self, reason: str) -> None:
        self._is_over = self._is_broken = True
        self._thread.unwatch(self._connection)
        background().call(lambda: self.on_end(reason))

    def _read(self) -> None:
        end = time.monotonic() + _TURN
        while time.monotonic() < end:
            if self.wire.blocked:
                self.wire.go_on()
            if self.wire.blocked:
                self._look_again(_RETRY)
                return
            if not self._unread:
                data = None if self._is_over else self._connection.read(_READ_MOST)
                if data is None:
                    return
                if not data:
                    self._read_end()
                    return
                self._unread = memoryview(data)
            self._unread = self._unread[self.wire.receive(self._unread) :]
        self._look_again(0)  # there may be more; others come first

    def _read_end(self) -> None:
        reason = self.wire.end()
        if reason is None:  # no room for the word of the end
            self._look_again(_RETRY)
            return
        self._is_over = True
        if self.options["raw"] and not self.options["close_on_eof"]:
            return
        self._is_broken = not self.options["raw"]
        background().call(lambda: self.on_end(reason))

    def _write(self) -> None:
        end = time.monotonic() + _TURN
        while not self._connection.wants_write:
            if not self._outgoing:
                self._outgoing = memoryview(self.wire.gather(self._connection.is_framed))
            if not self._outgoing:
                return
            taken = self._connection.write(self._outgoing)
            self.wire.consume(taken)
            self._outgoing = self._outgoing[taken:]
            if not taken:
                return
            if time.monotonic() >= end:
                self._look_again(0)
                return

    def _finish(self, linger: float) -> None:
        if self._is_closed:
            return
        if linger <= 0:
            self._end()
            return
        self._is_finishing = True
        self._thread.call_later(linger, self._end)
        self._ready()

    def _say_good_bye(self) -> None:
        self._is_over = True
        if self._connection.finish():
            self._end()
        else:
            self._look_again(_RETRY)

    def _end(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._thread.unwatch(self._connection)
        with contextlib.suppress(Exception):
            self._connection.close()
        self.wire.drop()
        self.wire.finish(0)
