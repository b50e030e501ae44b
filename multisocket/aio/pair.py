"""Pair for coroutines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import protocol as blocking
from .protocol import Receiving, Sending

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import PairOptions


class Pair(Sending, Receiving):
    """See :class:`multisocket.protocol.Pair`."""

    def __init__(self, **options: Unpack[PairOptions]) -> None:
        super().__init__(blocking.Pair(**options).socket)
