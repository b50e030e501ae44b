"""How far the participants of a cell are, for all of them to see."""

from __future__ import annotations

from typing import Any

from .crew import CONTEXT

_STARTED, _MEASURED, _LEFT = 1, 2, 3


class Progress:
    """How far everybody is. Each participant writes its own byte, so nothing is locked.

    :param senders: how many.
    :param receivers: how many.
    """

    def __init__(self, senders: int, receivers: int) -> None:
        self._senders = CONTEXT.RawArray("b", senders)
        self._receivers = CONTEXT.RawArray("b", receivers)

    def sender_started(self, index: int) -> None:
        """It has sent something."""
        self._senders[index] = _STARTED

    def receiver_started(self, index: int) -> None:
        """It has received something."""
        self._receivers[index] = _STARTED

    def receiver_measured(self, index: int) -> None:
        """It knows its rate."""
        self._receivers[index] = _MEASURED

    def receiver_left(self, index: int) -> None:
        """It receives no more."""
        self._receivers[index] = _LEFT

    def all_started(self) -> bool:
        """Senders and receivers."""
        return _all(self._senders, _STARTED) and _all(self._receivers, _STARTED)

    def all_measured(self) -> bool:
        """The receivers."""
        return _all(self._receivers, _MEASURED)

    def all_left(self) -> bool:
        """The receivers."""
        return _all(self._receivers, _LEFT)


def _all(stages: Any, least: int) -> bool:
    return all(stage >= least for stage in stages)
