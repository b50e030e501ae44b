"""Parcels: how objects travel to workers and back.

An object becomes bytes; or, when it has large buffers (NumPy and Arrow arrays, large bytes), a list of parts: the
pickle and the buffers, which are copied once, into the shared memory where the receiver then reads them. There they
belong to the receiver alone, so arrays are as writable as they were.

Pickle comes first, then what ``multiprocessing`` adds to it (sockets, connections), then, when it is installed,
cloudpickle, for lambdas and whatever else has no name to be found by.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..serializer import read_parts, size_with_parts, write_parts
from ..socket import Socket

Packed = bytes | list[memoryview]
"""A parcel that has not been sent: a short pickle; or a pickle and its buffers."""

Content = bytes | memoryview
"""A content that was received: as bytes, or where it lies."""

# Smaller buffers stay in the pickle.
_LARGE_BUFFER = 32768
# From this size on a content goes through an arena (see LARGE in shm.pyx).
LARGE = 131072
_MOST_WRAPPED = 64
_DEEPEST = 4
_ATOMS = frozenset([int, float, bool, complex, type(None)])

HEADER_ROOM = 256
"""Bytes before a parcel in parts, so that it can be passed on under another header."""

_COUNT = struct.Struct("<I")

_Callback = Callable[[pickle.PickleBuffer], bool]


class _Bytes:
    """Large bytes, or a bytearray: pickle would copy them once more."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self.data), (pickle.PickleBuffer(self.data),)


def _has_large_bytes(obj: Any, depth: int = 0) -> bool:
    kind = type(obj)
    if kind is bytes or kind is bytearray:
        return len(obj) >= LARGE
    if (kind is tuple or kind is list) and len(obj) <= _MOST_WRAPPED and depth < _DEEPEST:
        return any(_has_large_bytes(one, depth + 1) for one in obj)
    return False


def _wrapped(obj: Any, known: dict[int, Any], depth: int = 0) -> Any:
    """The object, with large bytes in it replaced, if they are at hand. What is there twice stays one object."""
    if not _has_large_bytes(obj, depth):
        return obj
    found = known.get(id(obj))
    if found is None:
        kind = type(obj)
        is_whole = kind is bytes or kind is bytearray
        found = _Bytes(obj) if is_whole else kind(_wrapped(one, known, depth + 1) for one in obj)
        known[id(obj)] = found
    return found


def pack(obj: Any) -> Packed:
    """Makes a parcel of an object.

    :raises Exception: what pickle raises when it cannot be done.
    """
    if type(obj) in _ATOMS:
        return pickle.dumps(obj, 5)
    buffers: list[pickle.PickleBuffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Whether it stays in the pickle."""
        with buffer.raw() as raw:
            if raw.nbytes < _LARGE_BUFFER:
                return True
        buffers.append(buffer)
        return False

    body = _dumps(_wrapped(obj, {}), keep, buffers)
    if not buffers and len(body) < LARGE:
        return body
    return [memoryview(body), *(buffer.raw() for buffer in buffers)]


def _dumps(obj: Any, keep: _Callback, buffers: list[pickle.PickleBuffer]) -> bytes:
    try:
        return pickle.dumps(obj, 5, buffer_callback=keep)
    except Exception as error:
        first = error
    for dumps in (_dumps_forking, _dumps_by_value):
        buffers.clear()
        try:
            return dumps(obj, keep)
        except Exception:
            continue
    if hasattr(first, "add_note") and not can_pack_by_value():
        first.add_note("what has no name to be found by, like a lambda, can be sent when cloudpickle is installed")
    raise first


def _dumps_forking(obj: Any, keep: _Callback | None = None) -> bytes:
    out = io.BytesIO()
    pickler = pickle.Pickler(out, 5, buffer_callback=keep)
    pickler.dispatch_table = ForkingPickler(io.BytesIO()).dispatch_table
    pickler.dump(obj)
    return out.getvalue()


def _dumps_by_value(obj: Any, keep: _Callback | None = None) -> bytes:
    import cloudpickle

    by_value: bytes = cloudpickle.dumps(obj, 5, buffer_callback=keep)
    return by_value


def pack_by_value(obj: Any) -> Packed:
    """A parcel that needs nothing of the ``__main__`` module where it is read.

    :raises ImportError: that needs cloudpickle.
    :raises Exception: what cloudpickle raises.
    """
    body = _dumps_by_value(obj)
    return body if len(body) < LARGE else [memoryview(body)]


def can_pack_by_value() -> bool:
    """Whether cloudpickle is installed."""
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        return False
    return True


def size_of(packed: Packed | memoryview) -> int:
    """Bytes, nearly."""
    if isinstance(packed, list):
        return sum(part.nbytes for part in packed)
    return len(packed)


def unpack(content: Content, at: int, in_parts: bool) -> Any:
    """The object in a content that was received.

    :param at: where its pickle begins; that of one in parts is known.
    :param in_parts: whether it was sent as parts.
    :raises Exception: what pickle raises when it cannot be done.
    """
    if not in_parts:
        return pickle.loads(memoryview(content)[at:])
    # Arrays shall be writable, and bytes are not.
    where = memoryview(bytearray(content)) if isinstance(content, bytes) else content
    (count,) = _COUNT.unpack_from(where, HEADER_ROOM)
    at = HEADER_ROOM + _COUNT.size + 8 * count
    sizes = struct.unpack_from(f"<{count}Q", where, HEADER_ROOM + _COUNT.size)
    body, *buffers = read_parts(at, sizes, where)
    return pickle.loads(body, buffers=buffers)


def opened(payload: Packed | memoryview) -> Any:
    """The object in a parcel that was not sent, or that lies where it was received."""
    if isinstance(payload, list):
        return pickle.loads(payload[0], buffers=payload[1:])
    return unpack(payload, 0, isinstance(payload, memoryview))


def send(sock: Socket, header: bytes, packed: Packed, timeout: float | None = None) -> None:
    """Sends header and parcel to one peer. Errors: as ``Socket.send``, and ``Socket.loan`` for large ones.

    :param header: at most :data:`HEADER_ROOM` bytes.
    """
    if isinstance(packed, bytes):
        sock.send(header + packed, timeout)
        return
    sizes = struct.pack(f"<I{len(packed)}Q", len(packed), *[part.nbytes for part in packed])
    header = header.ljust(HEADER_ROOM, b"\0") + sizes
    with sock.loan(size_with_parts(len(header), packed), timeout) as loan:
        write_parts(header, packed, loan.buffer)
        loan.send(timeout)
