"""A transport of one's own: ``zip+tcp://host:port`` is tcp with all bytes compressed.

Run it to see how many bytes it saves: ``python examples/zip_tcp.py``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import multisocket as ms
from multisocket.address import Address
from multisocket.options import Option, whole
from multisocket.transport import Connection, Listening, Transport, register
from multisocket.transport.tcp import OPTIONS, Tcp


class ZipConnection(Connection):
    """Compresses what goes over another connection."""

    def __init__(self, inner: Connection, level: int) -> None:
        self._inner = inner
        self._deflate = zlib.compressobj(level)
        self._inflate = zlib.decompressobj()
        self._unsent = b""
        self.peer = inner.peer
        self.wants_write = inner.wants_write

    def fileno(self) -> int:
        return self._inner.fileno()

    def proceed(self) -> bool:
        done = self._inner.proceed()
        if done:
            self._flush()
        self.wants_write = self._inner.wants_write or bool(self._unsent)
        return done

    def read(self, most: int) -> bytes | None:
        data = self._inner.read(most)
        return self._inflate.decompress(data) or None if data else data

    def write(self, data: memoryview) -> int:
        if self._unsent:
            return 0
        self._unsent = self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._flush()
        return len(data)

    def _flush(self) -> None:
        while self._unsent and (taken := self._inner.write(memoryview(self._unsent))):
            self._unsent = self._unsent[taken:]
        self.wants_write = bool(self._unsent)

    def finish(self) -> bool:
        return self._inner.finish()

    def close(self) -> None:
        self._inner.close()


class ZipListening(Listening):
    def __init__(self, inner: Listening, level: int) -> None:
        self._inner = inner
        self._level = level
        self.address = inner.address

    def fileno(self) -> int:
        return self._inner.fileno()

    def accept(self) -> ZipConnection | None:
        inner = self._inner.accept()
        return None if inner is None else ZipConnection(inner, self._level)

    def close(self) -> None:
        self._inner.close()


class ZipTcp(Transport):
    options: Mapping[str, Option] = {**OPTIONS, "level": whole(6, 1, 9, "of effort")}

    def listen(self, address: Address, options: Mapping[str, Any]) -> ZipListening:
        return ZipListening(Tcp().listen(address, options), options["level"])

    def dial(self, address: Address, options: Mapping[str, Any]) -> ZipConnection:
        return ZipConnection(Tcp().dial(address, options), options["level"])


register("zip+tcp", ZipTcp())

if __name__ == "__main__":
    text = b"".join(path.read_bytes() for path in sorted(Path(ms.__file__).parent.rglob("*.py")))
    with ms.Socket() as server, ms.Socket() as client:
        client.dial(server.listen("zip+tcp://127.0.0.1:0").address)
        client.send(text)
        assert server.recv(timeout=10) == text
        print(f"{len(text)} bytes arrived")
