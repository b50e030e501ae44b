"""Messages, and what their flags say."""

from __future__ import annotations

from .shm import Message, decode, encode

TO_ONE = 0
"""Send type: to one peer."""
TO_ALL = 1
"""Send type: to all peers."""
TO_DESTINATION = 2
"""Send type: along a path."""

INTERNAL = 4
"""Flag: for the library itself."""
NO_SOURCE = 8
"""Flag: nodes do not note where it came from."""
RAW = 16
"""Flag: from a peer that knows nothing of messages."""
CONTROL = 32
"""Flag: of a protocol, for itself."""

__all__ = [
    "CONTROL", "INTERNAL", "NO_SOURCE", "RAW", "TO_ALL", "TO_DESTINATION", "TO_ONE", "Message", "decode", "encode"
]  # fmt: skip
