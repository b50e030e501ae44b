"""Pipeline for coroutines."""

from __future__ import annotations

from typing import Any

from .. import protocol as blocking
from .protocol import Receiving, Sending


class Push(Sending):
    """See :class:`multisocket.protocol.Push`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(blocking.Push(**options).socket)


class Pull(Receiving):
    """See :class:`multisocket.protocol.Pull`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(blocking.Pull(**options).socket)
