"""Pipeline for coroutines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import protocol as blocking
from .protocol import Receiving, Sending

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import PullOptions, PushOptions


class Push(Sending):
    """See :class:`multisocket.protocol.Push`."""

    def __init__(self, **options: Unpack[PushOptions]) -> None:
        super().__init__(blocking.Push(**options).socket)


class Pull(Receiving):
    """See :class:`multisocket.protocol.Pull`."""

    def __init__(self, **options: Unpack[PullOptions]) -> None:
        super().__init__(blocking.Pull(**options).socket)
