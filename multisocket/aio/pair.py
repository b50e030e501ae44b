"""Pair for coroutines."""

from __future__ import annotations

from typing import Any

from .. import protocol as blocking
from .protocol import Receiving, Sending


class Pair(Sending, Receiving):
    """See :class:`multisocket.protocol.Pair`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(blocking.Pair(**options).socket)
