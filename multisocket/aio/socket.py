"""The Socket for coroutines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .. import socket as blocking
from ..connector import Dialer, Listener, Pipe
from ..errors import Closed, Timeout
from ..message import TO_ALL, Message
from ..serializer import MSGPACK, content_size, dump, load, write
from ..shm import UNSET, Loan, Unset
from .waiting import waiting

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import DialOptions, ListenOptions, SocketOptions

T = TypeVar("T")

# So often in a row a call may end at once before the loop's other tasks get a turn.
_MOST_IN_A_ROW = 64

# Waits for room begin with a few turns of the loop, and then get longer, seconds.
_TURNS = 20
_LEAST_PAUSE = 0.0005
_MOST_PAUSE = 0.005


class Socket:
    """Like :class:`multisocket.Socket`; what may wait there is a coroutine here. A cancelled receive loses no message.

    Any number of tasks may wait. Goes to other processes as that one does.

    :param options: as there.
    """

    def __init__(self, **options: Unpack[SocketOptions]) -> None:
        self._take(blocking.Socket(**options))

    @classmethod
    def of(cls, sock: blocking.Socket) -> Socket:
        """One for a Socket that is there, such as a protocol's, or one that another process has given."""
        self = cls.__new__(cls)
        self._take(sock)
        return self

    def _take(self, sock: blocking.Socket) -> None:
        self.socket = sock
        """The Socket underneath."""
        self._in_a_row = 0

    # --- connecting ---

    async def listen(self, address: str, **options: Unpack[ListenOptions]) -> Listener:
        """See :meth:`multisocket.Socket.listen`."""
        return self.socket.listen(address, **options)

    async def dial(self, address: str, **options: Unpack[DialOptions]) -> Dialer:
        """See :meth:`multisocket.Socket.dial`."""
        return await _in_thread(lambda: self.socket.dial(address, **options), _close_dialer)

    async def connect(self, address: str) -> Listener | Dialer:
        """See :meth:`multisocket.Socket.connect`."""
        return await _in_thread(lambda: self.socket.connect(address), _close_dialer)

    def stop_listen(self, address: str) -> None:
        """See :meth:`multisocket.Socket.stop_listen`."""
        self.socket.stop_listen(address)

    def stop_dial(self, address: str) -> None:
        """See :meth:`multisocket.Socket.stop_dial`."""
        self.socket.stop_dial(address)

    def close_pipe(self, pipe_id: int) -> None:
        """See :meth:`multisocket.Socket.close_pipe`."""
        self.socket.close_pipe(pipe_id)

    @property
    def pipes(self) -> list[Pipe]:
        """The live pipes."""
        return self.socket.pipes

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self.socket.closed

    def stats(self) -> dict[str, int]:
        """See :meth:`multisocket.Socket.stats`."""
        return self.socket.stats()

    # --- sending ---

    async def send(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.Socket.send`."""
        if self._in_a_row >= _MOST_IN_A_ROW:
            await self._breathe()
        self._in_a_row += 1
        try:
            self.socket.send(content, 0)
        except Timeout:
            await self._until_room(lambda: self.socket.send(content, 0), timeout)

    async def send_to(
        self, destination: Iterable[int], content: ReadableBuffer | None, timeout: float | Unset | None = UNSET
    ) -> None:
        """See :meth:`multisocket.Socket.send_to`."""
        path = tuple(destination)
        await self._with_room(lambda: self.socket.send_to(path, content, 0), timeout)

    async def send_all(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.Socket.send_all`."""
        if self._is_best_effort:
            return self.socket.send_all(content, 0)
        return await self._to_each(self.socket._pipe_ids, lambda pipes: self.socket._offer(pipes, content), timeout)

    async def send_msg(self, msg: Message[Any], timeout: float | Unset | None = UNSET) -> None:
        """See :meth:`multisocket.Socket.send_msg`."""
        if msg.send_type == TO_ALL and not self._is_best_effort:
            await self._to_each(self.socket._pipe_ids, lambda pipes: self.socket._offer_msg(pipes, msg), timeout)
            return
        await self._with_room(lambda: self.socket.send_msg(msg, 0), timeout)

    async def _send_on(self, msg: Message[Any], timeout: float | Unset | None) -> int:
        """To every peer but the one that the message came from."""
        if self._is_best_effort:
            return self.socket._send_on(msg, 0)
        pipes = [pipe for pipe in self.socket._pipe_ids if pipe != msg.pipe_id]
        return await self._to_each(pipes, lambda left: self.socket._offer_msg(left, msg), timeout)

    async def send_many(self, contents: Iterable[ReadableBuffer], timeout: float | Unset | None = UNSET) -> int:
        """See :meth:`multisocket.Socket.send_many`."""
        left = list(contents)
        total = len(left)

        def attempt() -> None:
            nonlocal left
            try:
                self.socket.send_many(left, 0)
            except Timeout as error:
                left = left[error.sent :]
                raise

        try:
            await self._with_room(attempt, timeout)
        except Timeout as error:
            error.sent = total - len(left)
            raise
        return total

    async def send_obj(self, obj: object, timeout: float | Unset | None = UNSET, *, serializer: str = MSGPACK) -> None:
        """See :meth:`multisocket.Socket.send_obj`."""
        parts = dump(obj, serializer)
        if serializer == MSGPACK:
            return await self.send(parts[0], timeout)
        with await self.loan(content_size(parts, serializer), timeout) as loan:
            write(parts, serializer, loan.buffer)
            await self.send_loan(loan, timeout)

    async def loan(self, nbytes: int, timeout: float | Unset | None = UNSET) -> Loan:
        """See :meth:`multisocket.Socket.loan`. Send it with ``send_loan``; its own methods may wait."""
        return await self._with_room(lambda: self.socket.loan(nbytes, 0), timeout)

    async def send_loan(self, loan: Loan, timeout: float | Unset | None = UNSET) -> None:
        """Sends what was written to one peer, like ``loan.send``."""
        await self._with_room(lambda: loan.send(0), timeout)

    @property
    def _is_best_effort(self) -> bool:
        return bool(self.socket._options["send_best_effort"])

    async def _with_room(self, attempt: Callable[[], T], timeout: float | Unset | None) -> T:
        await self._breathe()
        try:
            return attempt()
        except Timeout:
            return await self._until_room(attempt, timeout)

    async def _until_room(self, attempt: Callable[[], T], timeout: float | Unset | None) -> T:
        """Tries again and again: who makes room tells it only to threads."""
        if timeout is UNSET:
            timeout = self.socket._options["send_timeout"]
        end = None if timeout is None else time.monotonic() + float(timeout)  # type: ignore[arg-type]
        pause, turns = 0.0, 0
        while end is None or time.monotonic() < end:
            await asyncio.sleep(pause)
            turns += 1
            if turns >= _TURNS:
                pause = min(_MOST_PAUSE, max(_LEAST_PAUSE, pause * 2))
            try:
                return attempt()
            except Timeout:
                continue
        raise Timeout(f"no peer had room within {timeout} s: receivers are slower than senders, stopped, or not there")

    async def _to_each(
        self, pipes: list[int], offer: Callable[[list[int]], list[int]], timeout: float | Unset | None
    ) -> int:
        """To all of some pipes; how many. Those that had no room are offered it again."""
        left = pipes

        def attempt() -> None:
            nonlocal left
            left = offer(left)
            if left:
                raise Timeout

        try:
            await self._with_room(attempt, timeout)
        except Timeout as error:
            error.sent = len(pipes) - len(left)
            raise
        return len(pipes)

    # --- receiving ---

    async def recv(self, timeout: float | Unset | None = UNSET) -> bytes:
        """See :meth:`multisocket.Socket.recv`."""
        content: bytes = await self._receive(False, True, timeout)
        return content

    @overload
    async def recv_msg(
        self, timeout: float | Unset | None = UNSET, *, copy: Literal[True] = True
    ) -> Message[bytes]: ...

    @overload
    async def recv_msg(self, timeout: float | Unset | None = UNSET, *, copy: Literal[False]) -> Message[memoryview]: ...

    @overload
    async def recv_msg(
        self, timeout: float | Unset | None = UNSET, *, copy: bool
    ) -> Message[bytes] | Message[memoryview]: ...

    async def recv_msg(self, timeout: float | Unset | None = UNSET, *, copy: bool = True) -> Message[Any]:
        """See :meth:`multisocket.Socket.recv_msg`."""
        msg: Message[Any] = await self._receive(True, copy, timeout)
        return msg

    async def recv_many(self, max_messages: int, timeout: float | Unset | None = UNSET) -> list[bytes]:
        """See :meth:`multisocket.Socket.recv_many`."""
        return await self._receive_many(lambda: self.socket.recv_many(max_messages, 0), timeout)

    @overload
    async def recv_msgs(
        self, max_messages: int, timeout: float | Unset | None = UNSET, *, copy: Literal[True] = True
    ) -> list[Message[bytes]]: ...

    @overload
    async def recv_msgs(
        self, max_messages: int, timeout: float | Unset | None = UNSET, *, copy: Literal[False]
    ) -> list[Message[memoryview]]: ...

    @overload
    async def recv_msgs(
        self, max_messages: int, timeout: float | Unset | None = UNSET, *, copy: bool
    ) -> list[Message[bytes]] | list[Message[memoryview]]: ...

    async def recv_msgs(self, max_messages: int, timeout: float | Unset | None = UNSET, *, copy: bool = True) -> Any:
        """See :meth:`multisocket.Socket.recv_msgs`."""
        return await self._receive_many(lambda: self.socket.recv_msgs(max_messages, 0, copy=copy), timeout)

    async def recv_obj(self, timeout: float | Unset | None = UNSET) -> Any:
        """See :meth:`multisocket.Socket.recv_obj`."""
        msg = await self.recv_msg(timeout, copy=False)
        return load(msg.content if msg.content is not None else b"", from_network=msg.is_remote)

    def __aiter__(self) -> Socket:
        return self

    async def __anext__(self) -> Message[bytes]:
        try:
            return await self.recv_msg(None)
        except Closed:
            raise StopAsyncIteration from None

    async def _receive(self, as_message: bool, copy: bool, timeout: float | Unset | None) -> Any:
        # Whatever was taken is returned without another wait: so no cancellation comes in between.
        if self._in_a_row >= _MOST_IN_A_ROW:
            await self._breathe()
        self._in_a_row += 1
        taken = self.socket._poll(as_message, copy=copy)
        if taken is not UNSET:
            return taken
        end = self._end(timeout)
        while taken is UNSET:
            await self._readable(end, timeout)
            taken = self.socket._poll(as_message, copy=copy)
        return taken

    async def _receive_many(self, attempt: Callable[[], list[T]], timeout: float | Unset | None) -> list[T]:
        await self._breathe()
        end = self._end(timeout)
        while True:
            try:
                return attempt()
            except Timeout:
                await self._readable(end, timeout)

    def _end(self, timeout: float | Unset | None) -> float | None:
        if timeout is UNSET:
            timeout = self.socket._options["recv_timeout"]
        return None if timeout is None else time.monotonic() + float(timeout)  # type: ignore[arg-type]

    async def _readable(self, end: float | None, timeout: float | Unset | None) -> None:
        """Until a receive would end at once: there is something, or the Socket is closed."""
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            raise Timeout(f"no message came within {_seconds(timeout, self.socket)} s")
        self._in_a_row = 0
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()

        def wake() -> None:
            if woken.done():  # cancelled, but not yet taken back: the next one then
                self._pass_on()
            else:
                woken.set_result(True)

        timer = None if left is None else loop.call_later(left, _expire, woken)
        its = waiting()
        its.add(self.socket, wake)
        try:
            is_woken = await woken
        except asyncio.CancelledError:
            if woken.done() and not woken.cancelled() and woken.result():
                self._pass_on()
            raise
        finally:
            if timer is not None:
                timer.cancel()
            its.remove(self.socket, wake)
        if not is_woken:
            raise Timeout(f"no message came within {_seconds(timeout, self.socket)} s")

    def _pass_on(self) -> None:
        """Woken, but does not take the message: others that wait are to look."""
        waiting().look_again(self.socket)

    async def _breathe(self) -> None:
        """Lets the loop's other tasks have a turn now and then."""
        self._in_a_row += 1
        if self._in_a_row > _MOST_IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)

    # --- the end ---

    async def close(self) -> None:
        """See :meth:`multisocket.Socket.close`."""
        if not self.socket.closed:
            await _in_thread(self.socket.close, lambda _: None)

    async def __aenter__(self) -> Socket:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<aio {repr(self.socket)[1:]}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _of, (self.socket,)


def _of(sock: blocking.Socket) -> Socket:
    return Socket.of(sock)


def _expire(woken: asyncio.Future[bool]) -> None:
    if not woken.done():
        woken.set_result(False)


def _seconds(timeout: float | Unset | None, sock: blocking.Socket) -> Any:
    return sock._options["recv_timeout"] if timeout is UNSET else timeout


async def _in_thread(call: Callable[[], T], undo: Callable[[T], object]) -> T:
    """For what waits in a thread. Cancelled, it is undone when it is done."""
    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: None if done.cancelled() or done.exception() else undo(done.result()))
        raise


def _close_dialer(end: Dialer | Listener) -> None:
    end.close()
