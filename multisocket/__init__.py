"""Messages between the processes of a machine over shared memory: one stateless Socket, many processes."""

from __future__ import annotations

try:
    from .shm import __version__ as __version__
except ImportError as error:
    from .unbuilt import explain

    raise explain(error) from None

from .connector import Dialer, Listener, Pipe
from .errors import (
    AddressInUse,
    BadAddress,
    BadMessage,
    BadOption,
    BadTransport,
    BrokenPath,
    Closed,
    ConnectionRefused,
    ContentTooLong,
    Error,
    MessageDropped,
    NotSupported,
    OutOfSharedMemory,
    RemoteError,
    Timeout,
)
from .exports import publish
from .message import Message
from .names import clean
from .shm import Loan
from .socket import Socket

__all__ = [
    "AddressInUse",
    "BadAddress",
    "BadMessage",
    "BadOption",
    "BadTransport",
    "BrokenPath",
    "Closed",
    "ConnectionRefused",
    "ContentTooLong",
    "Dialer",
    "Error",
    "Listener",
    "Loan",
    "Message",
    "MessageDropped",
    "NotSupported",
    "OutOfSharedMemory",
    "Pipe",
    "RemoteError",
    "Socket",
    "Timeout",
    "clean",
]

publish(__name__, __all__, globals())
