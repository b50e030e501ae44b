"""Switch for coroutines."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from ..errors import BadOption, Closed, Error
from ..late import log
from ..message import Message
from ..protocol.switch import NOT_PASSED, ways
from .protocol import Protocol
from .socket import Socket

Middleware = Callable[[Message[memoryview], Socket], Message[Any] | Awaitable[Message[Any] | None] | None]


class Switch:
    """A running switch; see :func:`switch`."""

    def __init__(self, front: Socket, back: Socket, middleware: Middleware | None) -> None:
        self._middleware = middleware
        wrapped = {front.socket: front, back.socket: back}
        self._sockets = (front, back)
        self._ways = [(wrapped[origin], wrapped[target]) for origin, target in ways(front.socket, back.socket)]
        self.forwarded = 0
        """Messages that were passed on."""
        self.dropped = 0
        """Messages that were not."""
        self._tasks = [asyncio.ensure_future(self._forward(*way)) for way in self._ways]

    async def join(self) -> None:
        """Waits until it has ended, because one of its Sockets was closed."""
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others)

    async def close(self) -> None:
        """Closes both Sockets, and with them the switch."""
        for sock in self._sockets:
            await sock.close()
        await self.join()

    async def __aenter__(self) -> Switch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _forward(self, origin: Socket, target: Socket) -> None:
        while True:
            try:
                msg = await origin.recv_msg(None, copy=False)
                is_on = await self._pass_on(msg, origin, target)
            except Closed:
                return self._end()
            except Error as error:
                log.warning("a switch could not receive: %s", error)
                continue
            self.forwarded += is_on
            self.dropped += not is_on

    def _end(self) -> None:
        """One way has ended, and so do both."""
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _pass_on(self, msg: Message[memoryview], origin: Socket, target: Socket) -> bool:
        with msg:
            try:
                passed = await self._changed(msg, origin)
                if passed is None:
                    return False
                await target.send_msg(passed)
            except Closed:
                raise
            except NOT_PASSED as error:
                log.debug("a switch dropped a message: %s", error)
                return False
            except Exception:
                log.exception("a switch dropped a message because its middleware raised")
                return False
        return True

    async def _changed(self, msg: Message[memoryview], origin: Socket) -> Message[Any] | None:
        if self._middleware is None:
            return msg
        passed = self._middleware(msg, origin)
        return await passed if inspect.isawaitable(passed) else passed


def switch(front: Socket | Protocol, back: Socket | Protocol, middleware: Middleware | None = None) -> Switch:
    """See :func:`multisocket.protocol.switch`; in tasks of the running loop.

    :param middleware: as there, or a coroutine function.
    """
    return Switch(_socket_of(front), _socket_of(back), middleware)


def _socket_of(end: Socket | Protocol) -> Socket:
    sock = end.socket if isinstance(end, Protocol) else end
    if not isinstance(sock, Socket):
        raise BadOption(f"a switch of multisocket.aio stands between two of its Sockets, {end!r} is none")
    return sock
