"""Accepting whoever connects, in the background thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ..background import background

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_PAUSE = 0.1


class Accepts(Protocol[T_co]):
    """What connections come to."""

    def fileno(self) -> int:
        """The file descriptor that is readable when somebody connects."""
        ...

    def accept(self) -> T_co | None:
        """The next connection; None: nobody waits.

        :raises OSError: it cannot be accepted now, for want of descriptors.
        """

    def close(self) -> None:
        """Ends it."""


class Acceptor(Generic[T]):
    """Gives each connection to ``welcome``, until it is stopped."""

    def __init__(self, listening: Accepts[T], welcome: Callable[[T], None]) -> None:
        self._listening = listening
        self._welcome = welcome
        self._stopping = False
        self.stopped = threading.Event()
        """What was listened on is closed."""
        background().call(self._resume)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection = self._listening.accept()
            except OSError:
                self._pause()
                return
            if connection is None:
                return
            self._welcome(connection)

    def _pause(self) -> None:
        """No descriptor is left: the connection waits, and is not looked at all the time meanwhile."""
        background().unwatch(self._listening)
        background().call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        if not self._stopping:
            background().watch(self._listening, self._accept)

    def stop(self) -> None:
        """Accepts no more. Closed by the thread that watches it, if that runs, else it might watch a new descriptor of
        the same number."""
        self._stopping = True
        background().end_with(self.close)

    def close(self) -> None:
        """The same at once, in the background thread."""
        self._stopping = True
        background().unwatch(self._listening)
        self._listening.close()
        self.stopped.set()
