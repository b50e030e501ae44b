"""Publish and subscribe: Pub says something about a topic, and every Sub that wants it hears it.

A publication's body is the length of its topic (u16 BE), the topic, the content. A subscription is a control message:
one byte, 1 to subscribe or 0 to end that, and then prefixes of topics, each with its length (u16 BE). It is the
publisher who sends only what somebody wants. Subscriptions are told to all, so they find their way through switches,
and are kept by the path that they came; a subscriber looks once more whether it wants what comes, since a switch has
others behind it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ..background import Timer, background
from ..connector import Pipe
from ..errors import BadOption, BrokenPath, Closed, ContentTooLong, Error, MessageDropped, OutOfSharedMemory, Timeout
from ..late import log
from ..message import CONTROL, TO_ALL, Message
from ..shm import UNSET, TopicReader, TopicWriter, Unset
from .looks import end_of, looks
from .protocol import LocalProtocol, Protocol

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Unpack

    from ..options import PubSubOptions


DROP_NEWEST: Final = "drop newest"
"""A slow subscriber does not get what it has no room for."""
DROP_OLDEST: Final = "drop oldest"
"""Some publications are kept for it; then the oldest of these goes."""
BLOCK: Final = "block"
"""Sending waits for it."""
Slow = Literal["drop newest", "drop oldest", "block"]
"""What becomes of a publication for a subscriber without room."""

_SUBSCRIBE, _UNSUBSCRIBE = b"\1", b"\0"

_MOST_TOPIC = 0xFFFF

# Prefixes that one message tells of, which count together then. They stay within what a queue holds.
_MOST_AT_A_TIME = 1000

# Of one subscriber, prefixes at most: it is somebody's memory.
_MOST_PREFIXES = 1 << 16

# How soon what found no room is tried again, seconds.
_RETRY_TIME = 0.01

LOOK_TIME = 0.05
"""A wait for subscribers looks so often, seconds: another thread's send may have heard of one."""


class Publication(NamedTuple):
    """What was published."""

    topic: bytes
    content: bytes


@dataclass
class Subscriber:
    """Who is connected to a Pub and wants something.

    :param pipe_id: of the pipe that leads to it.
    :param lost: publications that it wanted and did not get, because it was slow.
    """

    pipe_id: int
    lost: int = 0
    _paths: dict[bytes, set[tuple[int, ...]]] = field(default_factory=dict, repr=False)
    """By which each prefix came."""
    _count: int = field(default=0, repr=False)
    _backlog: deque[bytes] = field(default_factory=deque, repr=False)

    @property
    def topics(self) -> set[bytes]:
        """Prefixes that it has subscribed."""
        return set(self._paths)


class Pub(LocalProtocol):
    """Publishes. Subscriptions count from the next ``send`` on after they came.

    :param slow: what becomes of a publication for a subscriber without room: ``"drop newest"``, ``"drop oldest"`` or
        ``"block"``. Unless it blocks, no subscriber slows the others.
    :param backlog: publications kept for each slow subscriber by ``"drop oldest"``.
    :param options: of the Socket.
    """

    def __init__(self, *, slow: Slow = DROP_NEWEST, backlog: int = 1000, **options: Unpack[PubSubOptions]) -> None:
        if slow not in (DROP_NEWEST, DROP_OLDEST, BLOCK):
            raise BadOption(f"option slow takes {DROP_NEWEST!r}, {DROP_OLDEST!r} or {BLOCK!r}, not {slow!r}")
        if not isinstance(backlog, int) or backlog < 1:
            raise BadOption(f"option backlog takes a number of publications, 1 or more, not {backlog!r}")
        _require_both_ways(options)
        super().__init__(**options)
        self._slow = slow
        self._blocks = slow == BLOCK
        self._most_backlog = backlog
        self._lock = threading.RLock()
        self._subscribers: dict[int, Subscriber] = {}
        # Pipes whose peers have subscribed a prefix.
        self._by_prefix: dict[bytes, set[int]] = {}
        # Heard before the pipe that they came by was announced.
        self._early: list[Message[bytes]] = []
        self._behind: set[int] = set()
        self._timer: Timer | None = None
        self._writer = TopicWriter(
            self.socket,
            self._blocks,
            self._hear,
            self._find,
            self._send_to_slow,
            self._refused,
            self._count_lost,
        )
        # Called directly it takes three quarters of the time.
        self.__dict__["send"] = self._writer.send
        self.socket._watch_pipes(self._on_pipe)

    def send(self, topic: bytes | str, content: ReadableBuffer, timeout: float | Unset | None = UNSET) -> int:
        """Publishes to all who have subscribed a prefix of the topic.

        :param topic: at most 65535 bytes; text is encoded as UTF-8.
        :param content: anything with the buffer protocol.
        :param timeout: seconds that ``"block"`` waits; the default is the option ``send_timeout``.
        :returns: how many wanted it.
        :raises Timeout: with ``"block"``, some subscribers had no room in that time, and do not get it.
        :raises ContentTooLong: all who want it take no content as long as that. (Otherwise those who do not lose it.)
        :raises Closed: the Socket is closed.
        """
        return self._writer.send(topic, content, timeout)

    def wait_subscribers(self, n: int, timeout: float | None = None) -> None:
        """Waits until that many peers have subscribed to something: what is sent then reaches them.

        :param timeout: seconds; None for ever.
        :raises Timeout: they have not in that time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while len(self.subscribers) < n:
            left = LOOK_TIME if end is None else min(LOOK_TIME, end - time.monotonic())
            if left <= 0:
                raise Timeout(f"{len(self.subscribers)} of {n} subscribers came within {timeout} s")
            self.socket._await_readable(left)

    @property
    def subscribers(self) -> list[Subscriber]:
        """Who wants something now."""
        self._hear()
        with self._lock:
            return [one for one in self._subscribers.values() if one._paths]

    # --- who wants what ---

    def _hear(self) -> None:
        self.socket._connecting("publishing")  # only there is it known who wants what
        with self._lock:
            while (msg := self.socket._poll(True)) is not UNSET:
                self._heard(msg)

    def _heard(self, msg: Message[bytes]) -> None:
        prefixes = _prefixes(msg.content)
        if not msg.flags & CONTROL or prefixes is None or not msg.source:
            log.info("a message of %d bytes to a Pub that is no subscription was dropped", len(msg.content))
            return
        subscriber = self._subscribers.get(msg.source[0])
        if subscriber is None:
            if self.socket._knows_pipe(msg.source[0]):
                self._early.append(msg)
            return
        for prefix in prefixes:
            if msg.content[:1] == _UNSUBSCRIBE:
                self._drop(subscriber, prefix, msg.source)
            elif subscriber._count < _MOST_PREFIXES:
                self._add(subscriber, prefix, msg.source)
            else:
                log.warning("pipe %d wants more than %d prefixes: one was not heeded", msg.source[0], _MOST_PREFIXES)
        self._writer.forget()

    def _add(self, subscriber: Subscriber, prefix: bytes, path: tuple[int, ...]) -> None:
        paths = subscriber._paths.setdefault(prefix, set())
        subscriber._count += path not in paths
        paths.add(path)
        self._by_prefix.setdefault(prefix, set()).add(subscriber.pipe_id)

    def _drop(self, subscriber: Subscriber, prefix: bytes, path: tuple[int, ...]) -> None:
        paths = subscriber._paths.get(prefix, set())
        subscriber._count -= path in paths
        paths.discard(path)
        if not paths and subscriber._paths.pop(prefix, None) is not None:
            self._unlist(subscriber, prefix)

    def _unlist(self, subscriber: Subscriber, prefix: bytes) -> None:
        pipes = self._by_prefix[prefix]
        pipes.discard(subscriber.pipe_id)
        if not pipes:
            del self._by_prefix[prefix]

    def _find(self, topic: bytes | str) -> tuple[tuple[int, ...], bytes]:
        """The pipes that a publication goes to, and what its body begins with."""
        encoded = _encoded(topic)
        head = _with_length(encoded)
        with self._lock:
            found: set[int] = set()
            for size in {len(prefix) for prefix in self._by_prefix}:
                found |= self._by_prefix.get(encoded[:size], set()) if size <= len(encoded) else set()
            pipes = tuple(found)
            self._writer.know(topic, pipes, head)
        return pipes, head

    def _on_pipe(self, event: str, pipe: Pipe) -> None:
        with self._lock:
            if event == "open":
                if self.socket._knows_pipe(pipe.id):  # a pipe that ends at once may be announced after its end
                    self._subscribers[pipe.id] = Subscriber(pipe.id)
                early, self._early = self._early, []
                for msg in early:
                    self._heard(msg)
                return
            gone = self._subscribers.pop(pipe.id, None)
            if gone is None:
                return
            self._forget_behind(pipe.id)
            for prefix in gone._paths:
                self._unlist(gone, prefix)
            self._writer.forget()

    # --- those who are slow ---

    def _send_to_slow(
        self, pipes: Iterable[int], head: bytes, content: ReadableBuffer, timeout: float | Unset | None
    ) -> None:
        body = b"".join((head, content))
        if self._blocks:
            return self._wait_for(pipes, body, timeout)
        if self._behind:
            return self._send_to_some_behind(pipes, body)
        with self._lock:
            for pipe in pipes:
                subscriber = self._subscribers.get(pipe)
                if subscriber is not None:
                    self._keep(subscriber, body)

    def _wait_for(self, pipes: Iterable[int], body: bytes, timeout: float | Unset | None) -> None:
        if timeout is UNSET:
            timeout = self.socket._options["send_timeout"]
        end = time.monotonic() + timeout if isinstance(timeout, (int, float)) else None
        missed: Timeout | None = None
        for pipe in pipes:
            try:
                left = timeout if end is None else max(0.0, end - time.monotonic())
                self.socket._send_through(pipe, body, left, flags=TO_ALL)
            except BrokenPath:
                continue
            except (Timeout, MessageDropped) as error:
                missed = error if isinstance(error, Timeout) else missed
                self._count_lost([pipe])
            except ContentTooLong:
                self._refused([pipe])
        if missed is not None:
            raise missed

    def _refused(self, pipes: Iterable[int]) -> None:
        log.info("the subscribers of pipes %s take no content as long as one that was published", pipes)
        self._count_lost(pipes)

    def _count_lost(self, pipes: Iterable[int]) -> None:
        with self._lock:
            for subscriber in filter(None, map(self._subscribers.get, pipes)):
                subscriber.lost += 1

    def _keep(self, subscriber: Subscriber, body: bytes) -> None:
        if self._slow == DROP_NEWEST:
            subscriber.lost += 1
            return
        if len(subscriber._backlog) >= self._most_backlog:
            subscriber._backlog.popleft()
            subscriber.lost += 1
        subscriber._backlog.append(body)
        self._behind.add(subscriber.pipe_id)
        self._writer.is_careful = True
        if self._timer is None:
            self._timer = background().call_later(_RETRY_TIME, self._catch_up_later)

    def _send_to_some_behind(self, pipes: Iterable[int], body: bytes) -> None:
        """What is kept for a subscriber goes first."""
        with self._lock:
            self._catch_up()
            behind = self._behind.intersection(pipes)
            later = self._offer([pipe for pipe in pipes if pipe not in behind], body)
            for pipe in [*behind, *later]:
                if pipe in self._subscribers:
                    self._keep(self._subscribers[pipe], body)

    def _offer(self, pipes: Iterable[int], body: bytes) -> list[int]:
        try:
            return self.socket._offer(pipes, body)
        except (Timeout, MessageDropped):
            return list(pipes)
        except ContentTooLong as error:
            self._refused(error.refused)
            return list(error.without_room)

    def _catch_up(self) -> None:
        for pipe in list(self._behind):
            backlog = self._subscribers[pipe]._backlog
            while backlog and not self._offer((pipe,), backlog[0]):
                backlog.popleft()
            if not backlog:
                self._forget_behind(pipe)

    def _forget_behind(self, pipe: int) -> None:
        self._behind.discard(pipe)
        self._writer.is_careful = bool(self._behind)

    def _catch_up_later(self) -> None:
        with self._lock:
            self._timer = None
            if self.socket.closed:
                return
            try:
                self._catch_up()
            except Closed:
                return
            except OutOfSharedMemory:
                log.debug("no memory for what slow subscribers are to get: later, perhaps")
            if self._behind:
                self._timer = background().call_later(_RETRY_TIME, self._catch_up_later)


class Sub(Protocol):
    """Hears what it has subscribed. Processes that share it share what comes; it is subscribed where it was made.

    :param topics: prefixes of the topics to subscribe; ``b""`` is all.
    :param options: of the Socket.
    """

    def __init__(self, topics: Iterable[bytes | str] = (), **options: Unpack[PubSubOptions]) -> None:
        if isinstance(topics, (bytes, str)):
            raise BadOption(f"topics is a list of prefixes, not {topics!r}: write [{topics!r}]")
        wanted = {_encoded(topic) for topic in topics}
        _require_both_ways(options)
        super().__init__(**options)
        self._topics = wanted
        # What each publisher has been told.
        self._told: dict[int, set[bytes]] = {}
        self._lock = threading.RLock()
        self._timer: Timer | None = None
        self._read_by(TopicReader(self.socket, Publication, self._learn))
        self.socket._watch_pipes(self._on_pipe)

    def _read_by(self, reader: TopicReader[Publication]) -> None:
        self._reader = reader
        # Called directly it takes two thirds of the time.
        self.__dict__["recv"] = reader.recv

    @property
    def topics(self) -> set[bytes]:
        """The prefixes that are subscribed."""
        return set(self._topics)

    def subscribe(self, topic: bytes | str) -> None:
        """From now on also what begins so. Twice is once.

        :raises NotSupported: in another process than that which made it.
        """
        self._change(_encoded(topic), is_wanted=True)

    def unsubscribe(self, topic: bytes | str) -> None:
        """Takes back ``subscribe``. What was wanted only for this is not given any more, even if it is here already."""
        self._change(_encoded(topic), is_wanted=False)

    def recv(self, timeout: float | Unset | None = UNSET) -> Publication:
        """The next publication. See :meth:`multisocket.Socket.recv`."""
        return self._reader.recv(timeout)

    def recv_many(self, max_messages: int, timeout: float | Unset | None = UNSET) -> list[Publication]:
        """Up to so many. See :meth:`multisocket.Socket.recv_many`."""
        for left in looks(self.socket, end_of(self.socket, timeout)):
            publications = self._reader.recv_many(max_messages, left)
            if publications:
                return publications
        raise Timeout("no publication that is wanted came in time")

    def __iter__(self) -> Iterator[Publication]:
        """Publications as they come, until it is closed."""
        return iter(self._reader)

    def _learn(self, body: bytes) -> Publication | None:
        """About a topic that was not there lately. None: it is not wanted, or none."""
        start = 2 + int.from_bytes(body[:2], "big")
        if len(body) < max(2, start):
            log.info("a message of %d bytes that is no publication was dropped", len(body))
            return None
        topic = body[2:start]
        if not self.socket._is_owner:  # what was subscribed since it was shared is not known here
            self._reader.know(topic)
            return Publication(topic, body[start:])
        with self._lock:
            if not any(map(topic.startswith, self._topics)):
                return None
            self._reader.know(topic)
        return Publication(topic, body[start:])

    # --- telling publishers ---

    def _change(self, topic: bytes, *, is_wanted: bool) -> None:
        self.socket._connecting("subscribing")
        with self._lock:
            # A new set: others look at it meanwhile.
            self._topics = self._topics | {topic} if is_wanted else self._topics - {topic}
            self._reader.forget()
            self._tell_all()

    def _on_pipe(self, event: str, pipe: Pipe) -> None:
        with self._lock:
            if event == "close":
                self._told.pop(pipe.id, None)
                return
            if not self.socket._knows_pipe(pipe.id):  # its end was announced before
                return
            self._told.setdefault(pipe.id, set())
            self._tell_all()

    def _tell_all(self) -> None:
        """Never waits: this may be the background thread. Who has no room is told later."""
        if not all([self._tell(pipe, told, self._topics) for pipe, told in self._told.items()]) and self._timer is None:
            self._timer = background().call_later(_RETRY_TIME, self._tell_later)

    def _tell(self, pipe: int, told: set[bytes], topics: set[bytes]) -> bool:
        for action, prefixes in ((_SUBSCRIBE, topics - told), (_UNSUBSCRIBE, told - topics)):
            left = sorted(prefixes)
            while left:
                some, left = left[:_MOST_AT_A_TIME], left[_MOST_AT_A_TIME:]
                if self.socket._offer((pipe,), action + b"".join(map(_with_length, some)), flags=CONTROL):
                    return False
                told ^= set(some)
        return True

    def _tell_later(self) -> None:
        with self._lock:
            self._timer = None
            if not self.socket.closed:
                with contextlib.suppress(Closed):
                    self._tell_all()

    def close(self) -> None:
        """See :meth:`multisocket.Socket.close`."""
        self._take_leave()
        super().close()

    def _take_leave(self) -> None:
        """Unsubscribes: behind a switch, no publisher would hear otherwise that it is gone."""
        if self.socket.closed or not self.socket._is_owner:
            return
        with self._lock, contextlib.suppress(Error):
            told, self._told = self._told, {}
            for pipe, its in told.items():
                self._tell(pipe, its, set())

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the Socket, and what was subscribed by then."""
        return {"socket": self.socket, "_topics": self._topics}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._read_by(TopicReader(self.socket, Publication, self._learn))


def _require_both_ways(options: Mapping[str, Any]) -> None:
    for name in ("no_recv", "no_send"):
        if options.get(name) is True:
            raise BadOption(f"option {name} cannot be True here: subscriptions go one way, publications the other")


def _encoded(topic: bytes | str) -> bytes:
    encoded = topic.encode() if isinstance(topic, str) else bytes(topic)
    if len(encoded) > _MOST_TOPIC:
        raise ContentTooLong(f"a topic has at most {_MOST_TOPIC} bytes, this one has {len(encoded)}")
    return encoded


def _with_length(topic: bytes) -> bytes:
    return len(topic).to_bytes(2, "big") + topic


def _prefixes(content: bytes) -> list[bytes] | None:
    """Those in a subscription; None: it is none."""
    if content[:1] not in (_SUBSCRIBE, _UNSUBSCRIBE):
        return None
    found, at = [], 1
    while at < len(content):
        start = at + 2
        at = start + int.from_bytes(content[at:start], "big")
        if start > len(content) or at > len(content):
            return None
        found.append(content[start:at])
    return found
