"""The Socket."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import arena, background, carrier, names
from .address import LISTEN, parse
from .connector import Connector, Dialer, Listener, Pipe
from .errors import Closed, NotSupported
from .options import SOCKET, resolve
from .serializer import MSGPACK, content_size, dump, load, write
from .shm import UNSET, Arena, Endpoint, Segment, Unset

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import DialOptions, ListenOptions, SocketOptions


class Socket(Endpoint):
    """Sends and receives messages; stateless and bidirectional.

    Sending and receiving are independent, and any number of threads and processes may do both on one Socket. Give it to
    a ``multiprocessing.Process`` (fork, spawn or forkserver), or inherit it by fork: the child sends and receives, and
    only the process that made the Socket connects it. The Socket ends for all with ``close`` there, or with that
    process.

    :param no_recv: discard what peers send.
    :param no_send: never send.
    :param recv_queue_size: messages that may wait to be received.
    :param recv_queue_bytes: bytes that may wait to be received; rounded up to a power of two. Not in memory until used.
        Two messages of any size are always let in.
    :param max_recv_content_length: bytes of a content that peers may send, at most 4 GiB.
    :param arena_limit: bytes of large contents that this Socket's messages may take, while they wait and while they
        are read in place; then ``send`` waits. A single larger one is let in when there is nothing else. 0: large
        contents go through the queues, and must fit into them.
    :param send_queue_size: messages kept while no peer is connected.
    :param send_ttl: nodes that a message may pass.
    :param send_best_effort: drop (``MessageDropped``) instead of waiting for room.
    :param send_timeout: seconds that a send waits, when it says nothing itself; None for ever.
    :param recv_timeout: seconds that a receive waits, when it says nothing itself; None for ever.
    :param send_stop_timeout: seconds that ``close`` waits until what is kept has been sent.
    :param pipe_limit: most connections at a time; None for no limit (65535).
    :raises BadOption: an unknown option, or a wrong value.
    :raises OutOfSharedMemory: no memory for it.
    """

    def __init__(self, **options: Unpack[SocketOptions]) -> None:
        values = resolve(SOCKET, options)
        segment = names.new_segment(
            values["recv_queue_bytes"],
            values["recv_queue_size"],
            values["send_queue_size"],
            values["max_recv_content_length"],
        )
        self._join(segment, names.guard_path(), values, owned=True)
        self._connector: Connector | None = Connector(
            self, segment, receives=not values["no_recv"], pipe_limit=values["pipe_limit"]
        )
        self._closing = threading.RLock()
        _open_sockets.add(self)
        _close_all_at_exit()

    def _join(self, segment: Segment, guard: str, values: dict[str, Any], *, owned: bool) -> None:
        self._name = segment.name
        self._guard = guard
        self._options = values
        self._attach(
            segment,
            guard,
            here=guard == names.guard_path(),
            owned=owned,
            no_send=values["no_send"],
            no_recv=values["no_recv"],
            best_effort=values["send_best_effort"],
            ttl=values["send_ttl"],
            send_timeout=values["send_timeout"],
            recv_timeout=values["recv_timeout"],
            arena_limit=values["arena_limit"],
        )

    # --- connecting: in the process that made the Socket ---

    def listen(self, address: str, **options: Unpack[ListenOptions]) -> Listener:
        """Accepts connections at an address.

        :param address: like ``ipc://jobs.sock``, ``inproc://jobs`` or ``tcp://*:30001``.
        :returns: the listener; its ``address`` is the bound address, its ``close`` stops listening.
        :raises AddressInUse: somebody alive listens there.
        :raises BadAddress, BadTransport, BadOption: it cannot be used.
        """
        return self._connecting("listen").listen(address, **options)

    def dial(self, address: str, **options: Unpack[DialOptions]) -> Dialer:
        """Connects to an address, and keeps connecting again when the connection is lost.

        :param address: where somebody listens.
        :param reconnect: False: only once.
        :param min_reconnect_time: seconds before the first new attempt; later ones wait longer, by 1.1 to 1.5 times.
        :param max_reconnect_time: seconds between attempts at most.
        :param dial_async: True: return at once and keep trying; otherwise it is connected on return.
        :returns: the dialer; its ``close`` stops dialing.
        :raises ConnectionRefused: nobody listens there, or does not want the connection.
        :raises Timeout: no answer within 5 seconds.
        :raises BadAddress, BadTransport, BadOption: it cannot be used.
        """
        return self._connecting("dial").dial(address, **options)

    def connect(self, address: str) -> Listener | Dialer:
        """Dials, or listens when the address ends with ``#listen``; options stand in its query.

        ``sock.connect("ipc://jobs.sock?reconnect=false#dial")``
        """
        if parse(address).direction == LISTEN:
            return self.listen(address)
        return self.dial(address)

    def stop_listen(self, address: str) -> None:
        """Stops listening there; pipes live on.

        :raises BadAddress: nobody listens there in this Socket.
        """
        self._connecting("stop_listen").stop_listen(address)

    def stop_dial(self, address: str) -> None:
        """Stops dialing there; a pipe that is there lives on.

        :raises BadAddress: nobody dials there in this Socket.
        """
        self._connecting("stop_dial").stop_dial(address)

    def close_pipe(self, pipe_id: int) -> None:
        """Ends one connection. A dialer with ``reconnect`` makes a new one.

        :raises BadAddress: there is no such pipe.
        """
        self._connecting("close_pipe").close_pipe(pipe_id)

    @property
    def pipes(self) -> list[Pipe]:
        """The live pipes."""
        return self._connecting("pipes").pipes

    @property
    def negotiator(self) -> Callable[[Pipe], object] | None:
        """Called with each new pipe before it opens, on both sides; returning False or raising refuses it.

        It runs in a background thread that all Sockets of the process share, so it must return soon.
        """
        return self._connecting("negotiator").negotiator

    @negotiator.setter
    def negotiator(self, function: Callable[[Pipe], object] | None) -> None:
        self._connecting("negotiator").negotiator = function

    @property
    def on_pipe(self) -> Callable[[str, Pipe], object] | None:
        """Called with ``"open"`` or ``"close"`` and the pipe. Like ``negotiator``, it must return soon."""
        return self._connecting("on_pipe").on_pipe

    @on_pipe.setter
    def on_pipe(self, function: Callable[[str, Pipe], object] | None) -> None:
        self._connecting("on_pipe").on_pipe = function

    def _watch_pipes(self, watcher: Callable[[str, Pipe], object]) -> None:
        """For a protocol: like ``on_pipe``, which stays the user's. Told of the pipes that are there, too."""
        connector = self._connecting("watching pipes")
        connector.watchers.append(watcher)
        for pipe in connector.pipes:
            watcher("open", pipe)

    def _knows_pipe(self, pipe_id: int) -> bool:
        """For a protocol: whether this pipe is there, or is being made."""
        connector = self._connector
        return connector is not None and connector.knows(pipe_id)

    def _connecting(self, what: str) -> Connector:
        connector = self._connector  # first: another thread may close the Socket meanwhile
        if self.closed:
            raise Closed("this Socket is closed: make a new one")
        if connector is None or not self._is_owner:
            raise NotSupported(
                f"{what} works in the process that made the Socket; this one shares it, to send, receive and close"
            )
        return connector

    # --- objects ---

    def send_obj(self, obj: object, timeout: float | Unset | None = UNSET, *, serializer: str = MSGPACK) -> None:
        """Sends an object, like ``send``.

        :param serializer: ``"msgpack"``, ``"pickle"`` or one that was registered. With pickle, the memory of NumPy
            arrays and whatever else offers it is copied once, to where the receiver reads it.
        :raises BadMessage: it cannot be serialized.
        :raises BadOption: there is no such serializer.
        """
        parts = dump(obj, serializer)
        if serializer == MSGPACK:
            return self.send(parts[0], timeout)
        began = time.monotonic()
        with self.loan(content_size(parts, serializer), timeout) as loan:
            write(parts, serializer, loan.buffer)
            if isinstance(timeout, (int, float)):
                timeout = max(0.0, timeout - (time.monotonic() - began))
            loan.send(timeout)
        return None

    def recv_obj(self, timeout: float | Unset | None = UNSET) -> Any:
        """The next message as an object, like ``recv``; with the serializer that its sender has used.

        What pickle gave as a buffer of its own, NumPy arrays for example, is read-only and lies where the sender has
        put it; the memory is given back when the object is gone.

        :raises BadMessage: the content is no object; or it came over a network, and its serializer is not safe to
            read from there (pickle is not: it may run anything). It is lost.
        """
        msg = self.recv_msg(timeout, copy=False)
        return load(msg.content if msg.content is not None else b"", from_network=msg.is_remote)

    # --- large contents: see multisocket.arena ---

    def _arena_used(self, used: Arena) -> None:
        arena.tend(used)

    def _reclaim(self, full: Arena) -> None:
        arena.reclaim(full)

    # --- the end ---

    def close(self) -> None:
        """Ends the Socket for all processes, in the process that made it; elsewhere gives up this process's handle.

        Waits up to ``send_stop_timeout`` seconds for messages that are kept because no peer was connected. Whoever is
        blocked in a send or receive gets ``Closed``. Closing twice is no error.
        """
        self._close(self._options["send_stop_timeout"])

    def _close(self, drain: float) -> None:
        if self._connector is None or not self._is_owner:
            self._detach()
            return
        # A second thread waits until the first one is done; unless that one may be waiting for it.
        if not self._closing.acquire(blocking=not background.is_background_thread()):
            return
        try:
            self._close_for_all(drain)
        finally:
            self._closing.release()

    def _close_for_all(self, drain: float) -> None:
        connector = self._connector
        if connector is None:
            return
        connector.close(drain)
        names.remove_segment(self._name)
        _open_sockets.discard(self)
        self._detach()
        # They refer to each other: without this, memory would be kept until the next garbage collection.
        self._connector = None

    def __enter__(self) -> Socket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_connector", None) is None or self.closed or not self._is_owner:
            return
        warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
        self._close(0)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"of process {'this' if self._is_owner else 'another'}"
        return f"<Socket {self._name.lstrip('/')} {state}>"

    # --- going to other processes ---

    def __reduce__(self) -> tuple[Any, ...]:
        if self.closed:
            raise Closed("this Socket is closed: it cannot be given to another process")
        return _attach_socket, (type(self), self._name, self._guard, self._options)


def _attach_socket(kind: type[Socket], name: str, guard: str, values: dict[str, Any]) -> Socket:
    """What a pickled Socket becomes: another handle of it. A closed one when the Socket is gone by now."""
    self = kind.__new__(kind)
    self._connector = None
    self._name, self._guard, self._options = name, guard, values
    try:
        segment = Segment.open(name)
    except FileNotFoundError:
        return self
    self._join(segment, guard, values, owned=False)
    return self


_open_sockets: weakref.WeakSet[Socket] = weakref.WeakSet()
_at_exit_pid = 0


def _close_all_at_exit() -> None:
    global _at_exit_pid
    if _at_exit_pid != os.getpid():
        _at_exit_pid = os.getpid()
        names.at_exit(_close_all, priority=10)


def _close_all() -> None:
    background.let_end()
    for sock in list(_open_sockets):
        sock.close()
    carrier.stop()
    background.stop()


def _forget_parents() -> None:
    # They belong to the parent: the child only has handles.
    _open_sockets.clear()


os.register_at_fork(after_in_child=_forget_parents)
