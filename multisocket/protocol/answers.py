"""Answers come to one Socket, and go to whoever has asked: what Req and Surveyor have in common.

A question's body is a number (u32 BE) and the content; its answers begin with the same number, and what went wrong
comes as a control message whose content is the reason.

No thread stands between an asking thread and its answer: one of those that wait receives for all of them, and hands
this on when it has its own (the pattern is known as leader and followers). Only what nobody waits for, a Future, needs
a thread.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..errors import Closed, Error, NotSupported, RemoteError, Timeout
from ..message import CONTROL, TO_DESTINATION, Message
from ..socket import Socket
from .looks import looks

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

HEAD_SIZE = 4
"""Bytes before the content."""

# Answers taken at a go by the thread that serves Futures.
_BATCH = 64


AnyAsker = TypeVar("AnyAsker")


class Asker(Protocol):
    """Somebody who has asked."""

    def told(self, msg: Message[bytes]) -> None:
        """An answer has come. Must return soon."""

    def failed(self, error: Exception) -> None:
        """None will come any more."""


class Waiter:
    """An asker with a thread that waits."""

    __slots__ = ("is_done", "wake")

    def __init__(self) -> None:
        self.is_done = False
        # Locked while it waits: the cheapest thing that a thread can sleep on.
        self.wake: threading.Lock | None = None


def joined(head: bytes, content: ReadableBuffer) -> bytes:
    """A body."""
    # Not +, which some contents have an own mind about: NumPy's arrays.
    return b"".join((head, content))


def content_of(msg: Message[bytes]) -> bytes:
    """What was answered.

    :raises RemoteError: that it went wrong.
    """
    content: bytes = msg.content[HEAD_SIZE:]
    if msg.flags & CONTROL:
        raise RemoteError(content.decode(errors="replace"))
    return content


class Numbers:
    """Numbers of questions, as they stand before a content.

    :param sock: that the answers come to.
    """

    def __init__(self, sock: Socket) -> None:
        self._socket = sock
        self._numbers = itertools.count(random.getrandbits(32))

    def next(self) -> bytes:
        """A new one.

        :raises Closed: the Socket is closed.
        :raises NotSupported: the Socket is another process's, which gets the answers.
        """
        if not self._socket._is_owner:
            raise _not_here(self._socket)
        return (next(self._numbers) & 0xFFFFFFFF).to_bytes(HEAD_SIZE, "big")


class Answers:
    """Receives for all who ask through a Socket.

    :param sock: nobody else receives from it.
    """

    def __init__(self, sock: Socket) -> None:
        self._socket = sock
        self._askers: dict[bytes, Asker] = {}
        self._numbers = Numbers(sock)
        self._turn = threading.Lock()
        self._leader = 0  # the thread that receives
        self._waiting: dict[Waiter, None] = {}
        self._futures: set[bytes] = set()
        self._is_needed = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def expect(self, asker: Asker) -> bytes:
        """A new number, as it stands before a content, whose answers go to this asker."""
        head = self._numbers.next()
        self._askers[head] = asker
        return head

    def forget(self, head: bytes) -> None:
        """Answers that still come are dropped."""
        self._askers.pop(head, None)

    # --- threads that wait ---

    def wait(self, waiter: Waiter, end: float | None) -> None:
        """Until the waiter is done.

        :param end: on the monotonic clock.
        :raises Timeout: that time came first.
        :raises Closed: the Socket is closed.
        """
        if self._leader == threading.get_ident():  # it asks from within ``told``: nobody else can receive
            self._receive_for(waiter, end)
        elif self._turn.acquire(blocking=False):
            self._lead(waiter, end)
        else:
            self._follow(waiter, end)

    def _lead(self, waiter: Waiter, end: float | None) -> None:
        """Receives, with the turn."""
        self._leader = threading.get_ident()
        try:
            self._receive_for(waiter, end)
        finally:
            self._leader = 0
            self._turn.release()
            if self._waiting:
                self._promote()

    def _receive_for(self, waiter: Waiter, end: float | None) -> None:
        try:
            for left in looks(self._socket, end):
                if waiter.is_done:
                    return
                self._give(self._socket.recv_msg(left))
        except Timeout:
            raise _late() from None
        if not waiter.is_done:
            raise _late()

    def _follow(self, waiter: Waiter, end: float | None) -> None:
        waiter.wake = threading.Lock()
        waiter.wake.acquire()
        self._waiting[waiter] = None  # before the look at the turn: whoever gives it up looks here afterwards
        try:
            while not waiter.is_done:
                if self._turn.acquire(blocking=False):
                    return self._lead(waiter, end)
                left = _left(end)
                patience = -1 if left is None else min(left, threading.TIMEOUT_MAX)
                if not waiter.wake.acquire(timeout=patience) and not waiter.is_done:
                    raise _late()
        finally:
            del self._waiting[waiter]
            # Woken to lead, but its own time was over, or its answer came: somebody else must.
            if not self._turn.locked():
                self._promote()

    def _promote(self) -> None:
        for waiter in list(self._waiting):
            if not waiter.is_done:
                return wake(waiter)

    def _give(self, msg: Message[bytes]) -> None:
        asker = asker_of(self._askers, msg)
        if asker is not None:
            asker.told(msg)

    # --- askers that do not wait ---

    def serve(self, head: bytes) -> None:
        """Has the answers to this number received by a thread, until it is served no more."""
        self._futures.add(head)
        if not self._is_needed.is_set():
            self._is_needed.set()
        if self._thread is None:
            self._start()

    def served(self, head: bytes) -> None:
        """Takes back :meth:`serve`."""
        self._futures.discard(head)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._receive, name="multisocket-answers", daemon=True)
                self._thread.start()

    def _receive(self) -> None:
        while True:
            self._is_needed.wait()
            failure: Exception | None = None
            try:
                with self._turn:
                    self._receive_while_needed()
            except Exception as error:  # out of memory, for one: who asks next may be luckier
                failure = error
            self._promote()  # they find out by themselves
            if failure is not None:
                self._fail_all(failure)
            if isinstance(failure, Closed):
                return

    def _receive_while_needed(self) -> None:
        self._leader = threading.get_ident()
        try:
            while self._futures:
                for msg in self._socket.recv_msgs(_BATCH, None):
                    self._give(msg)
        finally:
            self._leader = 0
        self._is_needed.clear()
        if self._futures:
            self._is_needed.set()

    def _fail_all(self, error: Exception) -> None:
        while True:
            try:
                head = self._futures.pop()
            except KeyError:
                return
            asker = self._askers.pop(head, None)
            if asker is not None:
                asker.failed(error)


def asker_of(askers: Mapping[bytes, AnyAsker], msg: Message[bytes]) -> AnyAsker | None:
    """Whose answer it is; None: it is late, or nobody's. Answers alone go to a destination: a question that comes back
    in a circle is none."""
    return askers.get(msg.content[:HEAD_SIZE]) if msg.send_type == TO_DESTINATION else None


def wake(waiter: Waiter) -> None:
    """Has it look again, if it sleeps."""
    if waiter.wake is not None and waiter.wake.locked():
        try:
            waiter.wake.release()
        except RuntimeError:  # somebody else was faster
            return


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _late() -> Timeout:
    return Timeout("no answer came in time: nobody is connected, or who was asked is slow, or gone")


def _not_here(sock: Socket) -> Error:
    if sock.closed:
        return Closed("this Socket is closed: make a new one")
    return NotSupported("questions are asked in the process that made the Socket, where answers come: make one here")
