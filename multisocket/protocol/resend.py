"""Sends a request again when its peer is gone, or takes too long."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ..background import Timer, background
from ..connector import Pipe
from ..errors import BrokenPath, Closed, Error, Timeout
from ..shm import Unset
from ..socket import Socket

# How soon one that found no peer with room is tried again, seconds.
_RETRY_TIME = 0.01


@dataclass
class _Request:
    body: bytes
    due: float
    pipe: int = 0
    """Who has it; 0: nobody."""


class Resender:
    """Gives each request to the peer with the fewest, and to another when it is due again.

    :param sock: that they are sent through.
    :param period: seconds from one time to the next.
    """

    def __init__(self, sock: Socket, period: float) -> None:
        self._socket = sock
        self._period = period
        self._lock = threading.RLock()
        self._requests: dict[bytes, _Request] = {}
        # Heads of the requests that each pipe's peer has; the pipe that was chosen last stands at the end.
        self._held: dict[int, set[bytes]] = {}
        self._timer: Timer | None = None
        self._timer_due = 0.0
        sock._watch_pipes(self._on_pipe)

    def send(self, head: bytes, body: bytes, timeout: float | Unset | None) -> None:
        """Sends a request for the first time. Raises as ``Socket.send``; without a peer it is kept."""
        with self._lock:
            request = self._requests[head] = _Request(body, time.monotonic() + self._period)
            pipe = self._choose(0)
            self._assign(head, request, pipe)
            self._look_at(request.due)
        try:
            if pipe:
                self._socket._send_through(pipe, body, timeout)
        except BrokenPath:
            self._lose(head, pipe)
        if self._socket.closed:  # meanwhile: nobody will send it
            raise Closed("this Socket was closed: make a new one")

    def post(self, head: bytes, body: bytes) -> None:
        """The same for one who cannot wait: it is sent by the background thread."""
        with self._lock:
            request = self._requests[head] = _Request(body, time.monotonic() + self._period)
            self._look_at(request.due)
        background().call(lambda: self._send_posted(head))

    def forget(self, head: bytes) -> None:
        """It has its reply, or nobody wants one any more."""
        with self._lock:
            request = self._requests.pop(head, None)
            if request is not None and request.pipe in self._held:
                self._held[request.pipe].discard(head)

    def close(self) -> None:
        """The Socket is closed."""
        with self._lock:
            self._requests.clear()
            if self._timer is not None:
                self._timer.cancel()

    # --- with the lock ---

    def _choose(self, other_than: int) -> int:
        """The pipe whose peer has the fewest; the given one only if it is the only one. 0: there is none."""
        best = min((pipe for pipe in self._held if pipe != other_than), key=self._load_of, default=0)
        return best or (other_than if other_than in self._held else 0)

    def _load_of(self, pipe: int) -> int:
        return len(self._held[pipe])

    def _assign(self, head: bytes, request: _Request, pipe: int) -> None:
        if request.pipe in self._held:
            self._held[request.pipe].discard(head)
        request.pipe = pipe
        if pipe:
            held = self._held.pop(pipe)
            held.add(head)
            self._held[pipe] = held

    def _look_at(self, due: float) -> None:
        if self._timer is not None and self._timer_due <= due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = max(due, time.monotonic())
        self._timer = background().call_later(max(0.0, due - time.monotonic()), self._look)

    # --- in the background thread ---

    def _on_pipe(self, event: str, pipe: Pipe) -> None:
        with self._lock:
            if event == "open":
                self._held.setdefault(pipe.id, set())
                waiting = [head for head, request in self._requests.items() if not request.pipe]
            else:
                waiting = list(self._held.pop(pipe.id, ()))
        for head in waiting:
            self._lose(head, pipe.id if event == "close" else 0)

    def _lose(self, head: bytes, pipe: int) -> None:
        """Whoever had it does not answer: to another one, now."""
        with self._lock:
            request = self._requests.get(head)
            if request is None or request.pipe != pipe:
                return
            request.due = time.monotonic()
            self._look_at(request.due)

    def _look(self) -> None:
        now = time.monotonic()
        with self._lock:
            self._timer = None
            due = [head for head, request in self._requests.items() if request.due <= now]
        for head in due:
            self._send_again(head)
        with self._lock:
            if self._requests and not self._socket.closed:
                soonest = min(request.due for request in self._requests.values())
                self._look_at(max(soonest, now + _RETRY_TIME))

    def _send_posted(self, head: bytes) -> None:
        request = self._requests.get(head)
        if request is not None and not request.pipe:  # else it was faster to look for what is due
            self._send_again(head)

    def _send_again(self, head: bytes) -> None:
        with self._lock:
            request = self._requests.get(head)
            if request is None:
                return
            pipe = self._choose(request.pipe)
            self._assign(head, request, pipe)
            # Without anybody, the next pipe that opens makes it due.
            request.due = time.monotonic() + self._period
        if not pipe:
            return
        try:
            self._socket._send_through(pipe, request.body, 0)
        except (Timeout, BrokenPath):
            with self._lock:
                request.due = time.monotonic() + _RETRY_TIME
                self._look_at(request.due)
        except Error:  # it is too long for that one, or the Socket is closed: who has asked finds out by itself
            return
