"""Pair: exactly two, one at each end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .protocol import Receiving, Sending, require_unset

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import PairOptions


class Pair(Sending, Receiving):
    """Talks with one peer. While there is one, others are refused; when it is gone, the next may come."""

    def __init__(self, **options: Unpack[PairOptions]) -> None:
        require_unset(options, ["pipe_limit"], "Pair")
        super().__init__(pipe_limit=1, **options)
