"""Surveys for coroutines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from .. import protocol as blocking
from ..errors import Error
from ..late import log
from ..message import CONTROL, Message
from ..protocol.answers import HEAD_SIZE, joined
from ..protocol.reqrep import NO_REPLY
from ..protocol.survey import DEADLINE
from .answers import Answers, Asker
from .protocol import Protocol
from .reqrep import Rep, Request

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import SocketOptions


class Surveyor(Protocol):
    """See :class:`multisocket.protocol.Surveyor`."""

    def __init__(self, **options: Unpack[SocketOptions]) -> None:
        super().__init__(blocking.Surveyor(**options).socket)
        self._answers = Answers(self.socket)

    async def survey(self, content: ReadableBuffer, deadline: float = DEADLINE) -> AsyncIterator[bytes]:
        """See :meth:`multisocket.protocol.Surveyor.survey`; for ``async for``, which also asks the question."""
        end = time.monotonic() + deadline
        responses: asyncio.Queue[Message[bytes] | Error] = asyncio.Queue()
        head = self._answers.expect(Asker(responses.put_nowait, responses.put_nowait))
        try:
            await self.socket.send_all(joined(head, content), deadline)
            while (left := end - time.monotonic()) > 0:
                try:
                    response = await asyncio.wait_for(responses.get(), left)
                except asyncio.TimeoutError:
                    return
                if isinstance(response, Error):
                    raise response
                if not response.flags & CONTROL:
                    yield response.content[HEAD_SIZE:]
        finally:
            self._answers.forget(head)


class Respondent(Rep):
    """See :class:`multisocket.protocol.Respondent`."""

    async def _answer(self, request: Request) -> None:
        try:
            content = await self._handled(request.content)
        except Exception:
            log.warning("a handler raised: there is no response", exc_info=True)
            return
        if content is None:
            return
        try:
            await request.reply(content)
        except NO_REPLY as error:
            log.warning("what a handler gave cannot be sent: %s", error)
