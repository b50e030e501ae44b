"""Switch: passes messages on between two Sockets, both ways.

A message keeps the path that it came, so answers find their way back; what is for one goes to the peer with the
shortest queue, so a switch balances; what goes round in circles ends when its ttl is used up. A large content stays
where it lies in shared memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import BadOption, BrokenPath, Closed, ContentTooLong, Error, MessageDropped, NotSupported, Timeout
from ..late import log
from ..message import Message
from ..socket import Socket
from .protocol import Protocol

# Seconds after which one way notices that the Socket at its other end was closed.
_LOOK_TIME = 0.5

Middleware = Callable[[Message[memoryview], Socket], Message[Any] | None]
"""Gets each message and the Socket that it came to; gives the message to pass on (that one, or
``msg.with_content(…)``), or None to drop it."""


NOT_PASSED = (BrokenPath, MessageDropped, Timeout, ContentTooLong, NotSupported)
"""Errors of a send after which a message is dropped, and the next one passed on."""


class Switch:
    """A running switch; see :func:`switch`.

    :param front: one Socket.
    :param back: the other one.
    :param middleware: see :func:`switch`.
    """

    def __init__(self, front: Socket, back: Socket, middleware: Middleware | None) -> None:
        self._middleware = middleware
        self._sockets = (front, back)
        self._ways = ways(front, back)
        self._lock = threading.Lock()
        self._forwarded = self._dropped = 0
        self._threads = [threading.Thread(target=self._forward, args=way, daemon=True) for way in self._ways]
        for thread in self._threads:
            thread.start()

    @property
    def forwarded(self) -> int:
        """Messages that were passed on."""
        return self._forwarded

    @property
    def dropped(self) -> int:
        """Messages that were not: by the middleware, because the way was gone, its ttl used up, or no room within the
        Socket's ``send_timeout``."""
        return self._dropped

    def join(self, timeout: float | None = None) -> bool:
        """Waits until it has ended, because one of its Sockets was closed.

        :param timeout: seconds; None for ever.
        :returns: whether it has.
        """
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Closes both Sockets (for all, where they were made here), and with them the switch."""
        for sock in self._sockets:
            sock.close()
        self.join()

    def __enter__(self) -> Switch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forward(self, origin: Socket, target: Socket) -> None:
        while not target.closed:
            try:
                msg = origin.recv_msg(_LOOK_TIME, copy=False)
                is_on = self._pass_on(msg, origin, target)
            except Closed:
                return
            except Timeout:
                continue
            except Error as error:
                log.warning("a switch could not receive: %s", error)
                continue
            with self._lock:
                self._forwarded += is_on
                self._dropped += not is_on

    def _pass_on(self, msg: Message[memoryview], origin: Socket, target: Socket) -> bool:
        with msg:
            try:
                passed = msg if self._middleware is None else self._middleware(msg, origin)
                if passed is None:
                    return False
                target.send_msg(passed)
            except Closed:
                raise
            except NOT_PASSED as error:
                log.debug("a switch dropped a message: %s", error)
                return False
            except Exception:
                log.exception("a switch dropped a message because its middleware raised")
                return False
        return True


def switch(front: Socket | Protocol, back: Socket | Protocol, middleware: Middleware | None = None) -> Switch:
    """Passes on what comes to one Socket through the other, both ways, in threads of its own, until one is closed.

    ``with switch(front, back) as running: running.join()`` blocks until then.

    :param front: a Socket, or a protocol for the sake of its Socket. Nobody else receives from it.
    :param back: the other one; the same one passes on among its own peers.
    :param middleware: called with each message and the Socket it came to; gives the message to pass on, or None to drop
        it. To change the content: ``return msg.with_content(…)``.
    :raises BadOption: something else than a Socket.

    With no room, it waits as the Socket's options say: with ``send_timeout`` or ``send_best_effort`` one who does not
    take answers cannot keep others from getting theirs.
    """
    return Switch(_socket_of(front), _socket_of(back), middleware)


def ways(front: Socket, back: Socket) -> list[tuple[Socket, Socket]]:
    """From where to where: from Sockets that receive.

    :raises BadOption: neither does.
    """
    both = [(front, back)] if front is back else [(front, back), (back, front)]
    found = [way for way in both if not way[0]._options["no_recv"]]
    if not found:
        raise BadOption("neither of the switch's Sockets receives: make one of them without no_recv")
    return found


def _socket_of(end: Socket | Protocol) -> Socket:
    sock = end.socket if isinstance(end, Protocol) else end
    if not isinstance(sock, Socket):
        raise BadOption(f"a switch stands between two Sockets, {end!r} is none")
    return sock
