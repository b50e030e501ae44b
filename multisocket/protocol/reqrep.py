"""Requests and replies: Req asks, one Rep answers.

A body is a number (u32 BE) that the requester gives, then the content; a reply has the number of its request. What went
wrong is replied as a control message, whose content is the reason in UTF-8.

Any number of processes and threads may share a Rep: the idle one takes the next request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any

from ..errors import BadOption, BrokenPath, Closed, ContentTooLong, Error, Timeout
from ..late import log
from ..late_future import LateFuture
from ..message import CONTROL, TO_DESTINATION, Message
from ..shm import UNSET, Unset
from ..socket import Socket
from .answers import HEAD_SIZE, Answers, Waiter, content_of, joined, wake
from .looks import end_of, looks
from .protocol import LocalProtocol, Protocol
from .resend import Resender

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import SocketOptions


TIMEOUT = 16.0
"""Seconds that a request waits for its reply, when it does not say."""

NO_REPLY = (TypeError, BufferError, MemoryError, ContentTooLong)
"""What is raised when something cannot be sent as a reply, whoever has asked."""


class Req(LocalProtocol):
    """Asks. Any number of threads may have requests outstanding, all in the process that made it.

    :param resend: seconds after which a request without reply is sent again, to another peer where there is one; at
        once when the peer that has it goes away. So it may be worked on twice; the first reply counts. None: never.
    :param options: of the Socket.
    """

    def __init__(self, *, resend: float | None = None, **options: Unpack[SocketOptions]) -> None:
        if resend is not None and not (isinstance(resend, (int, float)) and resend > 0 and resend is not True):
            raise BadOption(f"option resend takes seconds, more than 0, or None, not {resend!r}")
        super().__init__(**options)
        self._answers = Answers(self.socket)
        self._lock = threading.RLock()
        self._resender = None if resend is None else Resender(self.socket, resend)

    def request(self, content: ReadableBuffer, timeout: float | None = TIMEOUT) -> bytes:
        """Asks one peer and waits for the reply.

        :param content: anything with the buffer protocol.
        :param timeout: seconds for everything; None for ever.
        :raises Timeout: no reply in that time; one that comes later is dropped.
        :raises RemoteError: the handler there raised.
        :raises Closed, ContentTooLong, MessageDropped: as ``Socket.send``.
        """
        end = None if timeout is None else time.monotonic() + timeout
        waiting = _Waiting()
        head = self._answers.expect(waiting)
        try:
            self._send(head, content, timeout)
            self._answers.wait(waiting, end)
        finally:
            self._forget(head)
        return content_of(waiting.reply)

    def request_async(self, content: ReadableBuffer) -> Future[bytes]:
        """Asks one peer. It waits only for room to send, as long as the option ``send_timeout`` says.

        :returns: the reply to come, or :class:`RemoteError`. Cancelling it forgets the request.
        :raises Timeout, Closed, ContentTooLong, MessageDropped: as ``Socket.send``.
        """
        future = _Future(self)
        future.head = self._answers.expect(future)
        self._answers.serve(future.head)
        try:
            self._send(future.head, content, UNSET)
        except BaseException:
            self._forget_future(future.head)
            raise
        return future

    def close(self) -> None:
        """See :meth:`multisocket.Socket.close`. Who waits for a reply gets :class:`multisocket.Closed`."""
        super().close()
        if self._resender is not None:
            self._resender.close()

    def _send(self, head: bytes, content: ReadableBuffer, timeout: float | Unset | None) -> None:
        if self._resender is not None:
            return self._resender.send(head, joined(head, content), timeout)
        return self.socket.send(joined(head, content), timeout)

    def _forget(self, head: bytes) -> None:
        self._answers.forget(head)
        if self._resender is not None:
            self._resender.forget(head)

    def _forget_future(self, head: bytes) -> None:
        self._answers.served(head)
        self._forget(head)


class _Waiting(Waiter):
    """A request that a thread waits for."""

    __slots__ = ("reply",)

    reply: Message[bytes]

    def told(self, msg: Message[bytes]) -> None:
        if self.is_done:
            return
        self.reply = msg
        self.is_done = True
        if self.wake is not None:
            wake(self)

    def failed(self, error: Exception) -> None:
        """The thread finds out by itself."""


class _Future(LateFuture[bytes]):
    """The future of a reply."""

    head: bytes

    def __init__(self, req: Req) -> None:
        super().__init__()
        self._req = req
        self._is_cancel_told = False

    def told(self, msg: Message[bytes]) -> None:
        self._req._forget_future(self.head)
        try:
            self.finish(content_of(msg))
        except InvalidStateError:  # cancelled meanwhile
            pass
        except Error as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        try:
            self.set_exception(error)
        except InvalidStateError:
            return

    def cancel(self) -> bool:
        self._req._forget_future(self.head)
        if not super().cancel():
            return False
        with self._req._lock:
            is_first, self._is_cancel_told = not self._is_cancel_told, True
        if is_first:
            self.set_running_or_notify_cancel()  # for concurrent.futures.wait and as_completed
        return True


class Request:
    """What somebody asks.

    :param content: of it.
    """

    __slots__ = {"_head": None, "_socket": None, "_source": None, "content": "What is asked."}

    def __init__(self, sock: Socket, msg: Message[bytes]) -> None:
        self._socket = sock
        self._source = msg.source
        self._head: bytes = msg.content[:HEAD_SIZE]
        self.content: bytes = msg.content[HEAD_SIZE:]

    def reply(self, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> None:
        """Answers.

        :param timeout: seconds to wait for room; the default is the option ``send_timeout``.
        :raises BrokenPath: who has asked is gone.
        :raises Timeout, Closed, ContentTooLong, MessageDropped: as ``Socket.send``.
        """
        self._socket.send_to(self._source, joined(self._head, content), timeout)

    def fail(self, error: BaseException | str, timeout: float | Unset | None = UNSET) -> None:
        """Answers that it went wrong; who has asked gets :class:`multisocket.RemoteError`. Raises as ``reply``."""
        self._socket.send_msg(failure_of(self, error), timeout)


def failure_of(request: Request, error: BaseException | str) -> Message[bytes]:
    """The message that tells what went wrong."""
    body = request._head + _reason(error).encode(errors="replace")
    return Message(body, send_type=TO_DESTINATION, destination=request._source, flags=CONTROL)


def _reason(error: BaseException | str) -> str:
    if isinstance(error, str):
        return error
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # of its __str__
        return type(error).__name__


def request_of(sock: Socket, msg: Message[bytes]) -> Request | None:
    """The request in a message; None if it is none."""
    if len(msg.content) >= HEAD_SIZE and not msg.flags & CONTROL:
        return Request(sock, msg)
    log.info("a message of %d bytes that is no request was dropped", len(msg.content))
    return None


class Rep(Protocol):
    """Answers: by a handler, or by hand with ``for request in rep: request.reply(...)``.

    Give it to other processes to answer there as well: ``Process(target=rep.serve)``.

    :param handler: gets a request's content and gives the reply's. What it raises is the requester's
        :class:`multisocket.RemoteError`. For ``serve`` in processes that are spawned it must be picklable.
    :param workers: threads that answer in each process.
    :param options: of the Socket.
    """

    def __init__(
        self,
        handler: Callable[[bytes], ReadableBuffer | None] | None = None,
        *,
        workers: int = 1,
        **options: Unpack[SocketOptions],
    ) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise BadOption(f"option workers takes a number of threads, 1 or more, not {workers!r}")
        super().__init__(**options)
        self._handler = handler
        self._workers = workers
        self._threads: list[threading.Thread] = []

    def recv(self, timeout: float | Unset | None = UNSET) -> Request:
        """The next request. See :meth:`multisocket.Socket.recv`."""
        for left in looks(self.socket, end_of(self.socket, timeout)):
            request = request_of(self.socket, self.socket.recv_msg(left))
            if request is not None:
                return request
        raise Timeout("no request came in time, but other messages did")

    def __iter__(self) -> Iterator[Request]:
        while True:
            try:
                request = self.recv(None)
            except Closed:
                return
            yield request

    def serve(self) -> None:
        """Answers by the handler until the Socket is closed."""
        self._require_handler()
        others = [self._new_worker() for _ in range(self._workers - 1)]
        self._work()
        for thread in others:
            thread.join()

    def start(self) -> None:
        """The same in threads; ``close`` waits for them."""
        self._require_handler()
        self._threads += [self._new_worker() for _ in range(self._workers)]

    def close(self) -> None:
        """See :meth:`multisocket.Socket.close`. Waits for handlers that are at work."""
        super().close()
        threads, self._threads = self._threads, []
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _require_handler(self) -> None:
        if self._handler is None:
            raise BadOption("there is no handler: give one, as in Rep(handler), or answer by hand: for request in rep")

    def _new_worker(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="multisocket-rep", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        for request in self:
            try:
                self._answer(request)
            except Closed:
                return
            except BrokenPath:
                log.debug("who has asked is gone before the reply")
            except Error as error:
                log.warning("a reply could not be sent: %s", error)

    def _answer(self, request: Request) -> None:
        assert self._handler is not None
        try:
            content = self._handler(request.content)
        except Exception as error:
            log.debug("a handler raised", exc_info=True)
            return request.fail(error)
        try:
            request.reply(content)  # type: ignore[arg-type]
        except NO_REPLY as error:
            request.fail(error)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": []}
