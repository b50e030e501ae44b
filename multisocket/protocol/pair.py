"""Pair: exactly two, one at each end."""

from __future__ import annotations

from typing import Any

from .protocol import Receiving, Sending, require_unset


class Pair(Sending, Receiving):
    """Talks with one peer. While there is one, others are refused; when it is gone, the next may come."""

    def __init__(self, **options: Any) -> None:
        require_unset(options, ["pipe_limit"], "Pair")
        super().__init__(pipe_limit=1, **options)
