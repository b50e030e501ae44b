"""The connector of a Socket: its listeners, dialers and pipes.

It lives in the process that made the Socket. A transport makes the connection and says hello; the connector gives the
pipe its id, opens it in the Socket's pipe table, and hears from the transport when the connection has ended.

No lock of a connector is held while something of another one, or of the user, is called.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import arena, names, transport
from .address import Address, parse
from .background import Timer, background, is_background_thread
from .errors import BadAddress, BadMessage, Closed, ConnectionRefused, Error, NotSupported, Timeout
from .late import late, log
from .options import DIALER, LISTENER, Option, from_address, resolve
from .shm import Arena, Endpoint, Segment, Wire
from .transport.hello import HANDSHAKE_TIMEOUT, Hello, Link

if TYPE_CHECKING:
    import random

    from .transport import network
    from .transport.network import WireLink
else:
    random = late("random")
    network = late("multisocket.transport.network")

# While it waits for what is to be sent, it looks so often, seconds.
_LOOK_TIME = 0.005

# How soon messages that found no room are tried again, seconds.
_RESEND_TIME = 0.01

# Messages that an outbox holds at most; its bytes are an option.
_OUTBOX_MESSAGES = 65536

# After a peer died, its process may take this long to be gone for good, seconds.
_BURIAL_TIMES = (0.05, 0.5, 2.0)


class Pipe:
    """A connection to one peer.

    :param id: of the pipe in this Socket: how ``close_pipe`` and paths call it.
    :param address: that was dialed or listened on, without options.
    :param dialed: whether this side has dialed.
    :param peer_pid: process id of the peer's Socket's owner, as the peer says (or the kernel, over ipc); 0 for one
        that is reached by a network.
    :param peer_address: of the other end, like ``192.0.2.7:51712``; empty where there is none.
    """

    # No dataclass, nor a Future below: importing these takes as long as all of this package.
    __slots__ = ("__weakref__", "_dialer", "_hello", "_link", "_segment", "_shown")

    def __init__(
        self,
        id: int,
        address: str,
        dialed: bool,
        peer_pid: int,
        peer_address: str,
        hello: Hello,
        segment: Segment,
        link: Link,
        dialer: Dialer | None,
    ) -> None:
        self._shown = (id, address, dialed, peer_pid, peer_address)
        self._hello = hello
        self._segment = segment
        """Where messages to the peer wait: the peer's own, or an outbox of ours."""
        self._link = link
        self._dialer = dialer

    @property
    def id(self) -> int:
        """Of the pipe in this Socket: how ``close_pipe`` and paths call it."""
        return self._shown[0]

    @property
    def address(self) -> str:
        """That was dialed or listened on, without options."""
        return self._shown[1]

    @property
    def dialed(self) -> bool:
        """Whether this side has dialed."""
        return self._shown[2]

    @property
    def peer_pid(self) -> int:
        """Process id of the peer's Socket's owner; 0 for one that is reached by a network."""
        return self._shown[3]

    @property
    def peer_address(self) -> str:
        """Of the other end, like ``192.0.2.7:51712``; empty where there is none."""
        return self._shown[4]

    def __eq__(self, other: object) -> bool:
        return self._shown == other._shown if isinstance(other, Pipe) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._shown)

    def __repr__(self) -> str:
        id, address, dialed, peer_pid, peer_address = self._shown
        return f"Pipe({id=}, {address=}, {dialed=}, {peer_pid=}, {peer_address=})"


class _Unreceived:
    """To-one messages that a peer had not received when it went away."""

    def __init__(self, segment: Segment, peer_pipe: int) -> None:
        self.segment = segment
        self.peer_pipe = peer_pipe
        self.at: int | None = None


class Listener:
    """Accepts connections at an address until it is closed; its pipes live on then."""

    def __init__(self, connector: Connector, address: Address, options: Mapping[str, Any]) -> None:
        self._connector = connector
        self._bound = transport.find(address).listen(address, connector, options)
        self.address: str = self._bound.address
        """The bound address."""
        self.asked = str(address)

    def close(self) -> None:
        """Stops listening. Closing twice is no error."""
        self._connector._forget_listener(self)
        self._bound.close()


class Dialer:
    """Keeps one pipe to an address: dials, and dials again when the pipe is gone, until it is closed."""

    def __init__(self, connector: Connector, address: Address, options: dict[str, Any]) -> None:
        self._connector = connector
        self._address = address
        self.options = options
        """All that were given, or their defaults."""
        self._reconnect: bool = options["reconnect"]
        self._least: float = options["min_reconnect_time"]
        self._most: float = options["max_reconnect_time"]
        self._wait = self._least
        self._first = threading.Event()  # the first attempt has ended
        self._first_error: Exception | None = None
        self._timer: Timer | None = None
        self._closed = False
        # A first attempt that somebody waits for is not repeated: its error goes to them.
        self._persists: bool = options["dial_async"]
        self.address = str(address)

    def dial(self) -> None:
        """One attempt; what comes of it is told to ``connected`` or ``failed``."""
        if self._closed:
            return
        try:
            transport.find(self._address).dial(self._address, self._connector, self)
        except (Error, OSError) as error:
            self.failed(error)

    @property
    def closed(self) -> bool:
        """It dials no more."""
        return self._closed

    def wait(self) -> None:
        """Until the first attempt has ended.

        :raises ConnectionRefused, Timeout, …: it failed.
        """
        try:
            if not self._first.wait(HANDSHAKE_TIMEOUT + 1):
                raise Timeout(f"nobody answered at {self.address} within {HANDSHAKE_TIMEOUT} s")
            if self._first_error is not None:
                raise self._first_error
        except BaseException:
            self.close()
            raise

    def connected(self) -> None:
        """The transport has made the pipe."""
        self._wait = self._least
        self._persists = True
        self._first.set()

    def failed(self, error: Exception) -> None:
        """The transport could not make a pipe."""
        if not self._first.is_set():
            self._first_error = error
            self._first.set()
        log.debug("could not dial %s: %s", self.address, error)
        self._dial_later()

    def disconnected(self) -> None:
        """The pipe is gone."""
        self._dial_later()

    def _dial_later(self) -> None:
        if self._closed or not self._reconnect or not self._persists:
            return
        delay = self._wait
        self._wait = min(self._most, self._wait * random.uniform(1.1, 1.5))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = background().call_later(delay, self.dial)

    def close(self) -> None:
        """Dials no more; a pipe that is there lives on. Closing twice is no error."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._connector._forget_dialer(self)


class Connector:
    """See the module.

    :param endpoint: the Socket.
    :param segment: its shared memory.
    :param receives: whether the Socket takes messages.
    :param pipe_limit: most pipes at a time, or None.
    """

    def __init__(self, endpoint: Endpoint, segment: Segment, *, receives: bool, pipe_limit: int | None) -> None:
        self._endpoint = endpoint
        self._segment = segment
        self._receives = receives
        self._pipe_limit = pipe_limit
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._dialers: list[Dialer] = []
        self._pipes: dict[int, Pipe] = {}
        # Connections that are not closed for good yet.
        self._links: set[WireLink] = set()
        # Ids of pipes that are being made.
        self._reserved: set[int] = set()
        self._unreceived: list[_Unreceived] = []
        self._settled = threading.Condition()
        self._resend_due = False
        self._closed = False
        self.negotiator: Callable[[Pipe], object] | None = None
        self.on_pipe: Callable[[str, Pipe], object] | None = None
        # Of the protocol on top: told before on_pipe, which is the user's.
        self.watchers: list[Callable[[str, Pipe], object]] = []

    # --- for the Socket ---

    @property
    def pipes(self) -> list[Pipe]:
        """The live pipes."""
        with self._lock:
            return list(self._pipes.values())

    def knows(self, pipe_id: int) -> bool:
        """Whether this pipe is there, or is being made."""
        with self._lock:
            return pipe_id in self._pipes or pipe_id in self._reserved

    def listen(self, text: str, /, **given: Any) -> Listener:
        """See :meth:`multisocket.Socket.listen`."""
        address = _addressed(text, "listen")
        options = _resolve(LISTENER, address, given)
        self._require_open()
        listener = Listener(self, address, options)
        with self._lock:
            self._listeners.append(listener)
        return listener

    def dial(self, text: str, /, **given: Any) -> Dialer:
        """See :meth:`multisocket.Socket.dial`."""
        address = _addressed(text, "dial")
        options = _resolve(DIALER, address, given)
        self._require_open()
        dialer = Dialer(self, address, options)
        with self._lock:
            self._dialers.append(dialer)
        if options["dial_async"]:
            background().call(dialer.dial)
            return dialer
        if is_background_thread() and address.scheme != "inproc":
            raise NotSupported("on_pipe and negotiator run in the background thread: dial there with dial_async=True")
        dialer.dial()
        dialer.wait()
        return dialer

    def stop_listen(self, text: str) -> None:
        """See :meth:`multisocket.Socket.stop_listen`."""
        address = str(parse(text))
        self._stop(text, [one for one in self._listeners if address in (one.address, one.asked)])

    def stop_dial(self, text: str) -> None:
        """See :meth:`multisocket.Socket.stop_dial`."""
        address = str(parse(text))
        self._stop(text, [one for one in self._dialers if address == one.address])

    def _stop(self, text: str, found: list[Any]) -> None:
        if not found:
            raise BadAddress(f"{text!r} is not in use here: give the address as it was given before")
        for one in found:
            one.close()

    def close_pipe(self, pipe_id: int) -> None:
        """See :meth:`multisocket.Socket.close_pipe`."""
        with self._lock:
            pipe = self._pipes.get(pipe_id)
        if pipe is None:
            raise BadAddress(f"there is no pipe {pipe_id!r}: sock.pipes shows those there are")
        self._remove(pipe)
        pipe._link.close()

    def close(self, drain: float) -> None:
        """Ends everything. First, for up to ``drain`` seconds, waits until what is to be sent has been."""
        end = time.monotonic() + drain
        self._wait(self._is_drained, end)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._unreceived.clear()
            ends: list[Any] = [*self._listeners, *self._dialers]
        for one in ends:
            one.close()
        self._segment.close()
        self._endpoint._release_orphans()
        for pipe in self.pipes:
            self._remove(pipe)
            if not isinstance(pipe._link, network.WireLink):
                pipe._link.close()
        # Also those whose pipes ended before: they may still have something to write, and blocks of the arena.
        for link in list(self._links):
            link.close(max(0.0, end - time.monotonic()) if drain > 0 else 0.0)
        if not is_background_thread():
            self._wait(lambda: not self._links, max(end, time.monotonic() + 1.0))
        own = self._endpoint._own_arena()
        if own is not None:
            arena.close(own)

    def _is_drained(self) -> bool:
        """Nothing is left to send, or nobody is there who could take it."""
        if self._settle():
            return all(pipe._link.wire.is_idle for pipe in self.pipes if isinstance(pipe._link, network.WireLink))
        if self._pipes:
            return False
        # What a peer that is gone had not received was delivered once: it is not waited for.
        return not (self._endpoint.stats()["pending"] and (self._dialers or self._listeners))

    def _wait(self, condition: Callable[[], bool], end: float) -> None:
        with self._settled:
            while not condition() and (left := end - time.monotonic()) > 0:
                self._settled.wait(min(left, _LOOK_TIME))

    def link_is_gone(self, link: WireLink) -> None:
        """A connection is closed for good."""
        with self._settled:
            self._links.discard(link)
            self._settled.notify_all()

    def _require_open(self) -> None:
        if self._closed:
            raise Closed("this Socket is closed: make a new one")

    def _forget_listener(self, listener: Listener) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def _forget_dialer(self, dialer: Dialer) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._dialers.remove(dialer)

    # --- for transports ---

    def offer(self) -> Hello:
        """Reserves a pipe. Then comes ``open`` or ``withdraw``.

        :raises ConnectionRefused: the Socket has as many pipes as it may.
        """
        with self._lock:
            self._require_open()
            if self._pipe_limit is not None and len(self._pipes) + len(self._reserved) >= self._pipe_limit:
                raise ConnectionRefused(f"the Socket has its {self._pipe_limit} pipes (pipe_limit) already")
            number = self._endpoint._reserve_pipe()
            if not number:
                raise ConnectionRefused("the Socket has no place for another pipe, or /dev/shm is full")
            self._reserved.add(number)
        return Hello(self._segment.name, number, self._receives, os.getpid())

    def withdraw(self, ours: Hello) -> None:
        """Gives up a reserved pipe."""
        with self._lock:
            self._reserved.discard(ours.pipe)
            if not self._closed:
                self._endpoint._release_pipe(ours.pipe)

    def open(self, ours: Hello, theirs: Hello, link: Link, address: str, dialer: Dialer | None) -> None:
        """Opens a reserved pipe: messages may come and go when this returns. On an error it is withdrawn.

        :raises ConnectionRefused: the negotiator refuses, or the peer's memory cannot be used.
        """
        try:
            pipe = self._make_pipe(ours, theirs, link, address, dialer)
            self._enter(pipe)
        except BaseException:
            self.withdraw(ours)
            raise
        self._opened(pipe)

    def open_wire(
        self,
        ours: Hello,
        link: WireLink,
        address: str,
        peer: str,
        options: Mapping[str, Any],
        dialer: Dialer | None,
    ) -> None:
        """Opens a reserved pipe to a peer that is reached by a connection. On an error it is withdrawn.

        :raises ConnectionRefused: the negotiator refuses.
        :raises OutOfSharedMemory: no memory for its outbox.
        """
        outbox = None
        try:
            outbox = names.new_segment(options["send_queue_bytes"], _OUTBOX_MESSAGES, 1, 0xFFFFFFFF)
            wire = self._make_wire(ours.pipe, outbox, options)
            hello = Hello(outbox.name, ours.pipe, True, 0)
            pipe = Pipe(ours.pipe, address, dialer is not None, 0, peer, hello, outbox, link, dialer)
            self._enter(pipe, wire)
        except BaseException:
            if outbox is not None:
                names.remove_segment(outbox.name)
            self.withdraw(ours)
            raise
        self._links.add(link)
        try:
            link.begin(wire)
        except BaseException:
            self._links.discard(link)
            outbox.close()
            self._remove(pipe)
            raise
        self._opened(pipe)

    def _enter(self, pipe: Pipe, wire: Wire | None = None) -> None:
        """If nobody minds: from here on messages are sent through it."""
        self._negotiate(pipe)
        theirs = pipe._hello
        with self._lock:
            self._require_open()
            _require_wanted(pipe._dialer)
            self._endpoint._open_pipe(pipe.id, theirs.segment if theirs.receives else "", theirs.pipe, wire)
            self._pipes[pipe.id] = pipe
            self._reserved.discard(pipe.id)

    def _opened(self, pipe: Pipe) -> None:
        self._tell("open", pipe)
        try:
            self._settle()
        except Exception:  # the pipe is open, whatever becomes of earlier messages
            log.exception("what was kept could not be sent to %s", pipe)

    def _make_wire(self, pipe: int, outbox: Segment, options: Mapping[str, Any]) -> Wire:
        return Wire(
            self._segment,
            outbox,
            pipe,
            receives=self._receives,
            most=options.get("max_recv_content_length", 0xFFFFFFFF),
            chunk=options["raw_recv_buffer_size"] if options["raw"] else 0,
            keeps_half=not options["close_on_eof"],
            arena=self._endpoint._arena_for_wires() if self._receives else None,
        )

    def broken(self, pipe_id: int, reason: str, *, of: WireLink) -> None:
        """The connection behind a pipe has ended, or must end. What it had not taken goes to others."""
        with self._lock:
            pipe = self._pipes.get(pipe_id)
        if pipe is None or pipe._link is not of:
            of.close(0.0)
            return
        log.info("pipe %d with %s at %s is closed: %s", pipe.id, pipe.peer_address, pipe.address, reason)
        is_raw = bool(of.options["raw"])
        if not is_raw:
            of.wire.stop()
            pipe._segment.close()
        self._remove(pipe)
        # A raw peer that has only sent all it wants to say still gets its answer.
        of.close(network.LINGER if is_raw else 0.0)

    def ended(self, pipe_id: int, *, died: bool) -> None:
        """The connection behind a pipe is gone. died: without a word of good-bye, so its process is gone too."""
        with self._lock:
            pipe = self._pipes.get(pipe_id)
        if pipe is None:
            return
        if died:
            # Nobody takes anything from there from now on, so what is in it can be sent to others.
            pipe._segment.close()
            _bury(pipe._hello.segment)
        self._remove(pipe)
        pipe._link.close()

    def _make_pipe(self, ours: Hello, theirs: Hello, link: Link, address: str, dialer: Dialer | None) -> Pipe:
        try:
            segment = Segment.open(theirs.segment)
        except (FileNotFoundError, BadMessage, OSError) as error:
            raise ConnectionRefused(f"the peer's shared memory cannot be used: {error}") from error
        return Pipe(ours.pipe, address, dialer is not None, theirs.pid, "", theirs, segment, link, dialer)

    def _negotiate(self, pipe: Pipe) -> None:
        if self.negotiator is None:
            return
        try:
            refused = self.negotiator(pipe) is False
        except Exception as error:
            raise ConnectionRefused(f"the negotiator refused the connection: {error}") from error
        if refused:
            raise ConnectionRefused("the negotiator refused the connection")

    def _remove(self, pipe: Pipe) -> None:
        with self._lock:
            if self._pipes.pop(pipe.id, None) is None:
                return
            self._endpoint._release_pipe(pipe.id)
        if isinstance(pipe._link, network.WireLink):
            names.remove_segment(pipe._segment.name)
        if pipe._hello.receives and pipe._segment.closed and not self._closed:
            with self._lock:
                self._unreceived.append(_Unreceived(pipe._segment, pipe._hello.pipe))
            self._settle()
        self._tell("close", pipe)
        if pipe._dialer is not None:
            pipe._dialer.disconnected()

    def _tell(self, event: str, pipe: Pipe) -> None:
        for told in [*self.watchers, self.on_pipe]:
            if told is None:
                continue
            try:
                told(event, pipe)
            except Exception:
                log.exception("on_pipe raised for %s of %s", event, pipe)

    # --- messages that wait for a pipe ---

    def _settle(self) -> bool:
        """Sends what is pending, and what peers that are gone had not received, as far as there is room.

        True: nothing is left. Otherwise it is tried again when a pipe opens, and, while there are pipes, soon.
        """
        with self._lock:
            if self._closed:
                return True
            try:
                done = self._resend() and self._endpoint._flush()
            except Closed:
                return True
            again = not done and bool(self._pipes) and not self._resend_due
            self._resend_due |= again
        if again:
            background().call_later(_RESEND_TIME, self._settle_again)
        if done:
            with self._settled:
                self._settled.notify_all()
        return done

    def _settle_again(self) -> None:
        self._resend_due = False
        self._settle()

    def _resend(self) -> bool:
        while self._unreceived:
            first = self._unreceived[0]
            first.at = self._endpoint._resend(first.segment, first.peer_pipe, first.at)
            if first.at is not None:
                return False
            del self._unreceived[0]
            self._forget(first.segment)
        return True

    def _forget(self, gone: Segment) -> None:
        if any(other.segment is gone for other in self._unreceived):
            return
        for one in Arena.mapped():
            one.forget(gone.name, self._segment.name)


def _require_wanted(dialer: Dialer | None) -> None:
    if dialer is not None and dialer.closed:
        raise Closed(f"the dialer to {dialer.address} was closed in the meantime")


def _resolve(known: Mapping[str, Option], address: Address, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options for an address: those that all have, and those of its transport."""
    known = {**known, **transport.find(address).options}
    return resolve(known, {**from_address(known, address.options), **given})


def _addressed(text: str, direction: str) -> Address:
    address = parse(text)
    if address.direction not in (None, direction):
        raise BadAddress(f"{text!r} is to {address.direction}, and was given to {direction}: use connect() for both")
    return address


def _bury(segment: str) -> None:
    """Removes what a dead process has left, as soon as the kernel has let go of it."""
    prefix = names.prefix_of(segment)

    def later(times: tuple[float, ...]) -> None:
        if not names.clean_prefix(prefix) and times:
            background().call_later(times[0], lambda: later(times[1:]))

    later(_BURIAL_TIMES)
