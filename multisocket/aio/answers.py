"""Answers come to one Socket, and go to the coroutine that has asked. See multisocket/protocol/answers.py."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Error
from ..message import Message
from ..protocol.answers import Numbers, asker_of
from ..shm import UNSET
from .socket import Socket
from .waiting import waiting

# Answers taken before the loop's other tasks get a turn.
_BATCH = 64


class Asker:
    """Somebody who has asked.

    :param told: gets each answer.
    :param failed: gets the reason why none will come any more.
    """

    def __init__(self, told: Callable[[Message[bytes]], None], failed: Callable[[Error], None]) -> None:
        self.told = told
        self.failed = failed


class Answers:
    """Receives for all who ask through a Socket, in the loop that they run in.

    :param sock: nobody else receives from it.
    """

    def __init__(self, sock: Socket) -> None:
        self._socket = sock.socket
        self._numbers = Numbers(sock.socket)
        self._askers: dict[bytes, Asker] = {}
        self._waits = False

    def expect(self, asker: Asker) -> bytes:
        """A new number, as it stands before a content, whose answers go to this asker."""
        head = self._numbers.next()
        self._askers[head] = asker
        self._wait()
        return head

    def forget(self, head: bytes) -> None:
        """Answers that still come are dropped."""
        if self._askers.pop(head, None) is not None and not self._askers and self._waits:
            self._waits = False
            waiting().remove(self._socket, self._take)

    def _wait(self) -> None:
        if not self._waits:
            self._waits = True
            waiting().add(self._socket, self._take)

    def _take(self) -> None:
        self._waits = False
        try:
            self._take_some()
        except Error as error:
            for asker in list(self._askers.values()):
                asker.failed(error)
            return
        if self._askers:
            self._wait()

    def _take_some(self) -> None:
        for _ in range(_BATCH):
            msg = self._socket._poll(True)
            if msg is UNSET:
                return
            asker = asker_of(self._askers, msg)
            if asker is not None:
                asker.told(msg)
