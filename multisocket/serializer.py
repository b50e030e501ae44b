"""Serializers: how objects become contents and come back.

A content is msgpack's unless its first byte is 0xC1, which msgpack never uses. Then it is

    0xC1 | length of name u8 | name | number of parts u32 BE | size of each part u64 BE | parts

where each part begins at a multiple of 64 bytes from the beginning, so that numbers in it are aligned. So a receiver
finds out by itself how to read a content, and parts can be read where they lie.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .errors import BadMessage, BadOption
from .late import late
from .shm import copy

if TYPE_CHECKING:
    import pickle

    import msgpack
else:
    msgpack = late("msgpack")
    pickle = late("pickle")

MARK = 0xC1
_ALIGNMENT = 64
_MOST_PARTS = 1 << 20


class Serializer(Protocol):
    """What :func:`register` takes."""

    def dump(self, obj: Any) -> list[memoryview]:
        """The object as one or more parts, each contiguous bytes. Nothing need be copied."""
        ...

    def load(self, parts: list[memoryview]) -> Any:
        """The object again. The parts are read-only, and stay valid as long as somebody refers to them."""


class _Msgpack:
    """Compact, for all languages; sent without the header above."""

    def dump(self, obj: Any) -> list[memoryview]:
        return [memoryview(msgpack.packb(obj))]

    def load(self, parts: list[memoryview]) -> Any:
        return msgpack.unpackb(parts[0], strict_map_key=False)


class _Pickle:
    """Any Python object. What offers its memory (protocol 5: NumPy arrays, Arrow) is a part of its own."""

    def dump(self, obj: Any) -> list[memoryview]:
        buffers: list[pickle.PickleBuffer] = []
        body = pickle.dumps(obj, protocol=5, buffer_callback=buffers.append)
        return [memoryview(body), *(buffer.raw() for buffer in buffers)]

    def load(self, parts: list[memoryview]) -> Any:
        return pickle.loads(parts[0], buffers=parts[1:])


MSGPACK = "msgpack"

_known: dict[str, Serializer] = {MSGPACK: _Msgpack(), "pickle": _Pickle()}

# Those that may read what comes from other machines.
_safe = {MSGPACK}


def register(name: str, serializer: Serializer, *, is_safe: bool = False) -> None:
    """Makes a serializer known, for ``send_obj(..., serializer=name)`` and for what such a sender sends.

    :param name: ASCII, at most 255 characters; both sides must know it by the same name.
    :param is_safe: it may read what comes over a network: of whatever bytes, nothing but an object comes.
    :raises BadOption: another name is needed.
    """
    if not name.isascii() or not 0 < len(name) < 256 or name == MSGPACK:
        raise BadOption(f"a serializer's name has 1 to 255 ASCII characters and is not {MSGPACK!r}, this is {name!r}")
    _known[name] = serializer
    (_safe.add if is_safe else _safe.discard)(name)


def _find(name: str) -> Serializer:
    if name not in _known:
        raise BadOption(f"no serializer {name!r} is registered; there are: {', '.join(sorted(_known))}")
    return _known[name]


def dump(obj: Any, name: str) -> list[memoryview]:
    """The object's parts.

    :raises BadMessage: the serializer cannot serialize it.
    :raises BadOption: there is no such serializer.
    """
    serializer = _find(name)
    try:
        return [part.cast("B") for part in serializer.dump(obj)]
    except Exception as error:
        raise BadMessage(f"{name} cannot serialize a {type(obj).__name__}: {error}") from error


# --- the content ---


def _aligned(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def _header(name: str, sizes: Sequence[int]) -> bytes:
    return struct.pack(f">BB{len(name)}sI{len(sizes)}Q", MARK, len(name), name.encode(), len(sizes), *sizes)


def content_size(parts: list[memoryview], name: str) -> int:
    """Bytes that :func:`write` needs."""
    return size_with_parts(len(_header(name, [part.nbytes for part in parts])), parts)


def write(parts: list[memoryview], name: str, target: memoryview) -> None:
    """Writes header and parts to a buffer of :func:`content_size` bytes."""
    write_parts(_header(name, [part.nbytes for part in parts]), parts, target)


# --- parts behind any header ---


def size_with_parts(header: int, parts: Sequence[memoryview]) -> int:
    """Bytes of a header of so many bytes and of parts behind it."""
    at = header
    for part in parts:
        at = _aligned(at) + part.nbytes
    return at


def write_parts(header: bytes, parts: Sequence[memoryview], target: memoryview) -> None:
    """Writes header and parts to a buffer of :func:`size_with_parts` bytes."""
    at = len(header)
    target[:at] = header
    for part in parts:
        at = _aligned(at)
        copy(target[at : at + part.nbytes], part)
        at += part.nbytes


def read_parts(header: int, sizes: Sequence[int], content: memoryview) -> list[memoryview]:
    """The parts behind a header of so many bytes.

    :raises ValueError: there are fewer bytes.
    """
    parts = []
    at = header
    for size in sizes:
        at = _aligned(at)
        if at + size > content.nbytes:
            raise ValueError("it ends too early")
        parts.append(content[at : at + size])
        at += size
    return parts


def load(content: bytes | memoryview, *, from_network: bool = False) -> Any:
    """The object in a content.

    :param from_network: it came over one, so only a safe serializer may read it.
    :raises BadMessage: it is none.
    """
    name = MSGPACK
    try:
        name, parts = _read(memoryview(content).toreadonly())
        if from_network and name not in _safe:
            raise ValueError("it came over a network, and this serializer is not registered as safe for that")
        return _find(name).load(parts)
    except Exception as error:
        raise BadMessage(f"a content of {len(content)} bytes cannot be read as an object by {name}: {error}") from error


def _read(content: memoryview) -> tuple[str, list[memoryview]]:
    if not content.nbytes or content[0] != MARK:
        return MSGPACK, [content]
    length = content[1]
    name = str(content[2 : 2 + length], "ascii")
    (count,) = struct.unpack_from(">I", content, 2 + length)
    if count > _MOST_PARTS:
        raise ValueError(f"it claims to have {count} parts")
    sizes = struct.unpack_from(f">{count}Q", content, 6 + length)
    return name, read_parts(6 + length + 8 * count, sizes, content)
