"""Pipeline: Push gives each message to one Pull, the one with the shortest queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .protocol import Receiving, Sending, require_unset

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import PullOptions, PushOptions


class Push(Sending):
    """The giving end: sends each message to one, receives nothing."""

    def __init__(self, **options: Unpack[PushOptions]) -> None:
        require_unset(options, ["no_recv"], "Push")
        super().__init__(no_recv=True, **options)


class Pull(Receiving):
    """The taking end: receives, sends nothing. Iterating gives contents until it is closed."""

    def __init__(self, **options: Unpack[PullOptions]) -> None:
        require_unset(options, ["no_send"], "Pull")
        super().__init__(no_send=True, **options)
