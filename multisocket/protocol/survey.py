"""Surveys: a Surveyor asks all, and each Respondent may answer until the deadline.

Bodies are those of reqrep; a survey goes to all peers, and its number comes back with each response.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import Timeout
from ..late import log
from ..message import CONTROL, Message
from .answers import HEAD_SIZE, Answers, Waiter, joined, wake
from .protocol import LocalProtocol
from .reqrep import NO_REPLY, Rep, Request

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import SocketOptions


DEADLINE = 1.0
"""Seconds that a survey takes, when it does not say."""


class Surveyor(LocalProtocol):
    """Asks all who are connected. Any number of threads may have a survey running."""

    def __init__(self, **options: Unpack[SocketOptions]) -> None:
        super().__init__(**options)
        self._answers = Answers(self.socket)

    def survey(self, content: ReadableBuffer, deadline: float = DEADLINE) -> Iterator[bytes]:
        """Asks everybody, now; the responses are given as they come.

        ``for response in surveyor.survey(b"load?", deadline=0.5): …``

        :param content: anything with the buffer protocol.
        :param deadline: seconds for everything; later responses are dropped. So are those that come after the
            iteration was given up.
        :raises Timeout: some had no room for the question in that time.
        :raises Closed, ContentTooLong: as ``Socket.send_all``.
        """
        responses = self._responses(content, deadline)
        next(responses)  # asks; and from now on it forgets the survey when it is given up, which else it would not
        return responses

    def _responses(self, content: ReadableBuffer, deadline: float) -> Iterator[bytes]:
        end = time.monotonic() + deadline
        survey = _Survey()
        head = self._answers.expect(survey)
        try:
            self.socket.send_all(joined(head, content), deadline)
            yield b""
            while True:
                try:
                    self._answers.wait(survey, end)
                except Timeout:
                    return
                yield from survey.take()
                if time.monotonic() >= end:
                    return
        finally:
            self._answers.forget(head)


class _Survey(Waiter):
    __slots__ = ("_responses",)

    def __init__(self) -> None:
        super().__init__()
        self._responses: deque[bytes] = deque()

    def told(self, msg: Message[bytes]) -> None:
        if msg.flags & CONTROL:  # one that cannot answer is one that does not
            return
        self._responses.append(msg.content[HEAD_SIZE:])
        self.is_done = True
        wake(self)

    def failed(self, error: Exception) -> None:
        """The thread finds out by itself."""

    def take(self) -> list[bytes]:
        """What has come. It may be nothing: in the time between the two steps of ``told``."""
        self.is_done = False  # first, else one that comes meanwhile would not be noticed
        return [self._responses.popleft() for _ in range(len(self._responses))]


class Respondent(Rep):
    """Answers surveys: the same as a :class:`multisocket.protocol.Rep`, but need not. A handler that returns None does
    not answer, and one that raises neither."""

    def _answer(self, request: Request) -> None:
        assert self._handler is not None
        try:
            content = self._handler(request.content)
        except Exception:
            log.warning("a handler raised: there is no response", exc_info=True)
            return
        if content is None:
            return
        try:
            request.reply(content)
        except NO_REPLY as error:
            log.warning("what a handler gave cannot be sent: %s", error)
