"""Requests and replies for coroutines."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Union

from .. import protocol as blocking
from ..errors import BadOption, BrokenPath, Closed, Error, Timeout
from ..late import log
from ..message import Message
from ..protocol.answers import content_of, joined
from ..protocol.looks import end_of, looks
from ..protocol.reqrep import NO_REPLY, TIMEOUT, failure_of, request_of
from ..shm import UNSET, Unset
from .answers import Answers, Asker
from .protocol import Protocol
from .socket import Socket

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import SocketOptions


class Req(Protocol):
    """See :class:`multisocket.protocol.Req`. Any number of tasks may have requests outstanding.

    :param resend: as there.
    :param options: of the Socket.
    """

    def __init__(self, *, resend: float | None = None, **options: Unpack[SocketOptions]) -> None:
        req = blocking.Req(resend=resend, **options)
        super().__init__(req.socket)
        self._resender = req._resender
        self._answers = Answers(self.socket)

    async def close(self) -> None:
        """See :meth:`multisocket.Socket.close`. Who waits for a reply gets :class:`multisocket.Closed`."""
        await super().close()
        if self._resender is not None:
            self._resender.close()

    async def request(self, content: ReadableBuffer, timeout: float | None = TIMEOUT) -> bytes:
        """See :meth:`multisocket.protocol.Req.request`. Cancelled, the request is forgotten."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Message[bytes]] = loop.create_future()
        head = self._answers.expect(_asker(reply))
        timer = None if timeout is None else loop.call_later(timeout, _late, reply, timeout)
        try:
            await self._send(head, content, timeout)
            return content_of(await reply)
        finally:
            if timer is not None:
                timer.cancel()
            if reply.done() and not reply.cancelled():
                reply.exception()  # nobody looks at it if sending has failed first
            self._answers.forget(head)
            if self._resender is not None:
                self._resender.forget(head)

    def request_async(self, content: ReadableBuffer) -> asyncio.Task[bytes]:
        """The same, begun at once: a task."""
        return asyncio.ensure_future(self.request(content, None))

    async def _send(self, head: bytes, content: ReadableBuffer, timeout: float | None) -> None:
        if self._resender is not None:
            self._resender.post(head, joined(head, content))
            return
        await self.socket.send(joined(head, content), timeout)


def _asker(reply: asyncio.Future[Message[bytes]]) -> Asker:
    def told(msg: Message[bytes]) -> None:
        if not reply.done():
            reply.set_result(msg)

    def failed(error: Error) -> None:
        if not reply.done():
            reply.set_exception(error)

    return Asker(told, failed)


def _late(reply: asyncio.Future[Message[bytes]], timeout: float) -> None:
    if not reply.done():
        reply.set_exception(
            Timeout(f"no answer came within {timeout} s: nobody is connected, or who was asked is slow, or gone")
        )


class Request:
    """See :class:`multisocket.protocol.Request`.

    :param request: that one.
    :param sock: to reply through.
    """

    __slots__ = {"_request": None, "_socket": None, "content": "What is asked."}

    def __init__(self, request: blocking.Request, sock: Socket) -> None:
        self._request = request
        self._socket = sock
        self.content = request.content

    async def reply(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.protocol.Request.reply`."""
        await self._socket.send_to(self._request._source, joined(self._request._head, content), timeout)

    async def fail(self, error: BaseException | str, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.protocol.Request.fail`."""
        await self._socket.send_msg(failure_of(self._request, error), timeout)


Handler = Callable[[bytes], Union["ReadableBuffer", Awaitable["ReadableBuffer"]]]


class Rep(Protocol):
    """See :class:`multisocket.protocol.Rep`.

    :param handler: a coroutine function, or a function that is soon done: it is called in the loop.
    :param workers: requests that are answered at a time.
    :param options: of the Socket.
    """

    def __init__(self, handler: Handler | None = None, *, workers: int = 100, **options: Unpack[SocketOptions]) -> None:
        super().__init__(blocking.Rep(None, workers=workers, **options).socket)
        self._handler = handler
        self._workers = workers
        self._tasks: list[asyncio.Task[None]] = []

    async def recv(self, timeout: float | Unset | None = UNSET) -> Request:
        """The next request. See :meth:`multisocket.Socket.recv`."""
        for left in looks(self.socket.socket, end_of(self.socket.socket, timeout)):
            request = request_of(self.socket.socket, await self.socket.recv_msg(left))
            if request is not None:
                return Request(request, self.socket)
        raise Timeout("no request came in time, but other messages did")

    async def __aiter__(self) -> AsyncIterator[Request]:
        while True:
            try:
                request = await self.recv(None)
            except Closed:
                return
            yield request

    async def serve(self) -> None:
        """Answers by the handler until the Socket is closed."""
        self.start()
        await asyncio.gather(*self._tasks)

    def start(self) -> None:
        """The same in tasks; ``close`` waits for them."""
        if self._handler is None:
            raise BadOption("there is no handler: give one, or answer by hand: async for request in rep")
        self._tasks += [asyncio.ensure_future(self._work()) for _ in range(self._workers)]

    async def close(self) -> None:
        """See :meth:`multisocket.Socket.close`. Waits for handlers that are at work."""
        await super().close()
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        async for request in self:
            try:
                await self._answer(request)
            except Closed:
                return
            except BrokenPath:
                log.debug("who has asked is gone before the reply")
            except Error as error:
                log.warning("a reply could not be sent: %s", error)

    async def _answer(self, request: Request) -> None:
        try:
            content = await self._handled(request.content)
        except Exception as error:
            log.debug("a handler raised", exc_info=True)
            return await request.fail(error)
        try:
            await request.reply(content)
        except NO_REPLY as error:
            await request.fail(error)

    async def _handled(self, content: bytes) -> Any:
        assert self._handler is not None
        result = self._handler(content)
        return await result if inspect.isawaitable(result) else result
