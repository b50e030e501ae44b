"""What a stream of bytes over a Socket is made of: its messages, and what each end remembers. No thread waits here, so
streams for threads and for coroutines are both made of this.

Each end gives a stream a number (u32) of its own. All numbers are big-endian.

    data       to u32 | from u32 | bytes                           not a control message
    control    kind u8 | to u32 | from u32 | what the kind needs

    OPEN       from: the opener's number; to: 0; window u32: bytes that may be sent to it
    ACCEPT     window u32: the answer
    CREDIT     n u32: so many bytes more may be sent
    END        nothing more is sent
    CLOSE      nothing more is sent or read
    RESET      reason: there is no such stream (any more)
    PROBE      are you there?
    ALIVE      yes

Whoever has read half a window gives it back as credit, so a reader that is slow makes its writer wait, and nobody else.
"""

from __future__ import annotations

import secrets
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import BrokenPath, Error, Timeout
from ..late import log
from ..message import CONTROL, RAW, TO_DESTINATION, TO_ONE, Message

OPEN, ACCEPT, CREDIT, END, CLOSE, RESET, PROBE, ALIVE = range(1, 9)

_IDS = struct.Struct(">II")
_CONTROL = struct.Struct(">BII")
_NUMBER = struct.Struct(">I")

MOST_DATA = 1 << 16
"""Bytes of one message."""

_MOST_CREDIT = 0xFFFFFFFF
_MOST_REASON = 500

# Seconds between two looks for silent peers, at least and at most: no timer can wait for ever.
_LEAST_LOOK = 0.01
_LONGEST_LOOK = 3600.0

Path = tuple[int, ...]


@dataclass
class KeepAlive:
    """When a silent peer is asked whether it is there.

    :param idle: seconds of silence before the first probe.
    :param interval: seconds between probes.
    :param probes: without answer, until the stream is broken.
    """

    idle: float
    interval: float
    probes: int


class Flow:
    """One end of a stream.

    :param number: ours.
    :param window: bytes that may wait here to be read.
    :param now: on the monotonic clock.
    """

    def __init__(self, number: int, window: int, now: float) -> None:
        self.number = number
        self.window = window
        self.path: Path = ()
        self.theirs = 0
        """The peer's number; 0 until it has accepted."""
        self.credit = 0
        """Bytes that may be sent."""
        self.is_ended = False
        """Nothing more comes."""
        self.is_shut = False
        """We send nothing more."""
        self.is_deaf = False
        """The peer reads nothing more."""
        self.reason: str | None = None
        """Why it is broken."""
        self.changed: Callable[[], None] = _nobody
        """Called after each change that somebody may wait for."""
        self.heard = now
        self.probes = 0
        self._came = bytearray()
        # Bytes read since the peer was last given credit.
        self._taken = 0

    # --- what somebody waits for ---

    @property
    def is_open(self) -> bool:
        """The peer has accepted it, or will not any more."""
        return self.theirs != 0 or self.reason is not None

    @property
    def is_readable(self) -> bool:
        """There are bytes, or there will be none."""
        return len(self._came) > 0 or self.is_ended

    @property
    def is_writable(self) -> bool:
        """Bytes may be sent, or may not any more."""
        return self.credit > 0 or self.is_deaf or self.is_shut

    @property
    def is_over(self) -> bool:
        """In both directions."""
        return self.is_ended and (self.is_deaf or self.is_shut)

    # --- bytes ---

    def take_into(self, target: memoryview) -> int:
        """Fills it as far as there are bytes; how many."""
        n = min(len(target), len(self._came))
        with memoryview(self._came) as came:
            target[:n] = came[:n]
        del self._came[:n]
        self._taken += n
        return n

    @property
    def available(self) -> int:
        """Bytes that wait to be read."""
        return len(self._came)

    def earned(self) -> int:
        """Credit that the peer is to be given now; 0: not yet."""
        if not self.is_earned:
            return 0
        earned, self._taken = self._taken, 0
        return earned

    @property
    def is_earned(self) -> bool:
        """The peer is to be given credit."""
        return self._taken * 2 >= self.window and not self.is_ended

    def not_given(self, credit: int) -> None:
        """It could not be told of."""
        self._taken += credit

    def require_writable(self) -> None:
        """:raises BrokenPath: nothing may be sent any more."""
        if self.is_shut:
            raise BrokenPath("nothing can be written after shutdown_write")
        if self.is_deaf:
            raise BrokenPath(f"nothing more can be written: {self.reason or 'the peer has closed the stream'}")

    def reserve(self, n: int) -> int:
        """Takes credit for up to ``n`` bytes of one message."""
        n = min(n, self.credit, MOST_DATA)
        self.credit -= n
        return n

    # --- what comes ---

    def arrived(self, data: memoryview) -> bool:
        """False: more than was allowed."""
        if self.is_ended or len(self._came) + self._taken + len(data) > self.window:
            return False
        self._came += data
        return True

    def given(self, credit: int) -> bool:
        """False: more than there can be."""
        self.credit += credit
        return self.credit <= _MOST_CREDIT

    def end(self) -> None:
        """Nothing more comes."""
        self.is_ended = True

    def fail(self, reason: str) -> None:
        """It is broken: what came can still be read."""
        if self.reason is None and not self.is_over:
            self.reason = reason
        self.is_ended = self.is_deaf = True

    def drop(self) -> None:
        """What came is not read any more."""
        self._came.clear()


def _nobody() -> None:
    pass


@dataclass(frozen=True)
class _Opened:
    """What a peer has opened and nobody has accepted yet. Until then it takes no bytes, and nobody looks after it."""

    path: Path
    theirs: int
    credit: int


class Flows:
    """All streams through one Socket. Whoever uses it sees to it that only one thread does at a time.

    :param window: bytes that may wait at this end of each.
    :param backlog: streams that peers have opened and nobody has accepted, at most.
    :param keep_alive: of all.
    """

    def __init__(self, window: int, backlog: int, keep_alive: KeepAlive) -> None:
        self._window = window
        self._most_waiting = backlog
        self._keep_alive = keep_alive
        self._flows: dict[int, Flow] = {}
        self._waiting: deque[_Opened] = deque()
        self.offered: Callable[[], None] = _nobody
        """Called when a peer has opened a stream."""

    def __len__(self) -> int:
        return len(self._flows) + len(self._waiting)

    def __iter__(self) -> Iterator[Flow]:
        return iter(list(self._flows.values()))

    # --- our wishes: each gives the message that tells the peer ---

    def open(self, now: float) -> tuple[Flow, Message[bytes]]:
        """A new stream to some peer."""
        flow = self._new(now)
        body = _CONTROL.pack(OPEN, 0, flow.number) + _NUMBER.pack(flow.window)
        return flow, Message(body, send_type=TO_ONE, flags=CONTROL)

    @property
    def waiting(self) -> int:
        """Streams that peers have opened and nobody has accepted."""
        return len(self._waiting)

    def accept(self, tell: Callable[[Message[bytes]], object], now: float) -> Flow | None:
        """The next stream that a peer has opened. None: there is none, or their peers take no messages now.

        :param tell: sends a message at once, or raises.
        """
        for _ in range(len(self._waiting)):
            opened = self._waiting.popleft()
            flow = self._new(now)
            flow.path, flow.theirs, flow.credit = opened.path, opened.theirs, opened.credit
            try:
                tell(control(flow, ACCEPT, _NUMBER.pack(flow.window)))
                return flow
            except Timeout:  # it must not keep others from being accepted
                self._waiting.append(opened)
            except Error:
                log.debug("who has opened a stream is gone before it was accepted")
            self.forget(flow)
        return None

    def goodbyes(self) -> list[Message[bytes]]:
        """Tells all peers that this end closes."""
        closing = [control(flow, CLOSE) for flow in self if flow.theirs and not flow.is_deaf]
        reason = "it was closed before anybody had accepted the stream"
        return closing + [_reset(opened.path, opened.theirs, 0, reason) for opened in self._waiting]

    def forget(self, flow: Flow) -> None:
        """Nobody uses it any more."""
        self._flows.pop(flow.number, None)
        flow.drop()

    def _new(self, now: float) -> Flow:
        # Not to be guessed: only who was asked can accept.
        number = secrets.randbits(32)
        while number == 0 or number in self._flows:
            number = secrets.randbits(32)
        flow = self._flows[number] = Flow(number, self._window, now)
        return flow

    # --- what comes ---

    def heard(self, msg: Message[bytes], now: float) -> Message[bytes] | None:
        """A message has come. The answer need not get there: it is asked for again, or missed later."""
        if msg.content is None or msg.flags & RAW:  # of a peer that knows nothing of streams
            return None
        body = memoryview(msg.content)
        kind, head = (body[0], _CONTROL.size) if msg.flags & CONTROL and body else (0, _IDS.size)
        if len(body) < head or bool(msg.flags & CONTROL) != bool(kind):
            return None
        ours, theirs = _IDS.unpack_from(body, head - _IDS.size)
        if kind == OPEN:
            return self._opened(msg.source, theirs, body[head:], now)
        flow = self._flows.get(ours)
        if flow is not None and not flow.path:
            if not msg.source or not (kind == RESET or (kind == ACCEPT and theirs)):
                return None
            flow.path, flow.theirs = msg.source, theirs
        elif kind == ACCEPT and flow is not None:  # a second time
            return None
        if flow is None or flow.path != msg.source or flow.theirs != theirs:
            return None if kind == RESET else _reset(msg.source, theirs, ours, "there is no such stream")
        flow.heard, flow.probes = now, 0
        if kind == PROBE:
            return control(flow, ALIVE)
        return self._told(flow, kind, body[head:])

    def _opened(self, path: Path, theirs: int, rest: memoryview, now: float) -> Message[bytes] | None:
        if len(rest) != _NUMBER.size or not theirs or not path:
            return None
        if len(self._waiting) >= self._most_waiting:
            return _reset(path, theirs, 0, f"{self._most_waiting} streams wait there to be accepted already")
        self._waiting.append(_Opened(path, theirs, *_NUMBER.unpack(rest)))
        self.offered()
        return None

    def _told(self, flow: Flow, kind: int, rest: memoryview) -> Message[bytes] | None:
        is_good = True
        if kind == 0:
            is_good = flow.arrived(rest)
        elif kind in (ACCEPT, CREDIT):
            is_good = len(rest) == _NUMBER.size and flow.given(*_NUMBER.unpack(rest))
        elif kind == END:
            flow.end()
        elif kind == CLOSE:
            flow.end()
            flow.is_deaf = True
        elif kind == RESET:
            flow.fail(bytes(rest[:_MOST_REASON]).decode(errors="replace"))
        answer = None
        if not is_good:
            flow.fail("the peer has not kept to the rules of streams")
            answer = _reset(flow.path, flow.theirs, flow.number, "more came than was allowed")
        flow.changed()
        return answer

    # --- peers that are gone ---

    def pipe_closed(self, pipe: int) -> None:
        """Whoever was reached through it is gone."""
        for flow in self:
            if flow.path[:1] == (pipe,):
                self._break(flow, "the peer is gone")
        self._waiting = deque(opened for opened in self._waiting if opened.path[0] != pipe)

    def fail_all(self, reason: str) -> None:
        """All are broken."""
        for flow in self:
            self._break(flow, reason)

    def _break(self, flow: Flow, reason: str) -> None:
        flow.fail(reason)
        flow.changed()

    def look(self, now: float) -> list[Message[bytes]]:
        """Finds out who is silent for too long; the probes to be sent, which need not get there."""
        probes = []
        for flow in self:
            silent = now - flow.heard
            if not flow.theirs or flow.is_over or silent < self._due(flow):
                continue
            if flow.probes >= self._keep_alive.probes:
                self._break(flow, f"the peer did not answer for {silent:.1f} s")
                continue
            flow.probes += 1
            probes.append(control(flow, PROBE))
        return probes

    def next_look(self, now: float) -> float | None:
        """Seconds until :meth:`look` is due; None: there is nothing to look at."""
        dues = [flow.heard + self._due(flow) - now for flow in self if flow.theirs and not flow.is_over]
        if not dues:
            return None
        return min(_LONGEST_LOOK, max(self._keep_alive.interval / 4, _LEAST_LOOK, min(dues)))

    def _due(self, flow: Flow) -> float:
        return self._keep_alive.idle + flow.probes * self._keep_alive.interval


def control(flow: Flow, kind: int, rest: bytes = b"") -> Message[bytes]:
    """A control message to the other end."""
    body = _CONTROL.pack(kind, flow.theirs, flow.number) + rest
    return Message(body, send_type=TO_DESTINATION, destination=flow.path, flags=CONTROL)


def credit(flow: Flow, n: int) -> Message[bytes]:
    """So many bytes more may be sent."""
    return control(flow, CREDIT, _NUMBER.pack(n))


def data(flow: Flow, content: memoryview) -> bytes:
    """The body of a message with bytes."""
    return _IDS.pack(flow.theirs, flow.number) + content


def _reset(path: Path, to: int, number: int, reason: str) -> Message[bytes]:
    body = _CONTROL.pack(RESET, to, number) + reason.encode()
    return Message(body, send_type=TO_DESTINATION, destination=path, flags=CONTROL)
