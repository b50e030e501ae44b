"""Port forwarding through streams."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, Processes, until_full, wait_until
from multisocket.protocol import Stream, forward_in, forward_out, switch


class Server:
    """A plain tcp server that gives back what it gets, in capitals where there are letters."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := connection.recv(65536):
                connection.sendall(content.upper())
            connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for one in (self._listening, *self.connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(DEADLINE)


@contextmanager
def forwarded(folder: Path, server: str) -> Iterator[str]:
    """Where clients reach the server: through streams over ipc, a switch, inproc, a second switch, and tcp."""
    with contextlib.ExitStack() as stack:
        out, into = stack.enter_context(Stream()), stack.enter_context(Stream())
        last = out.listen("tcp://127.0.0.1:0").address
        for front, back in [(f"inproc://{folder.name}", last), (f"ipc://{folder}/s", f"inproc://{folder.name}")]:
            near, far = ms.Socket(send_stop_timeout=0), ms.Socket(send_stop_timeout=0)
            near.listen(front)
            far.dial(back)
            stack.enter_context(switch(near, far))
        into.dial(f"ipc://{folder}/s")
        stack.enter_context(forward_out(out, server))
        entrance = stack.enter_context(forward_in(into, "tcp://127.0.0.1:0"))
        yield entrance.address
        entrance.close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def dial(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=DEADLINE)
    connection.settimeout(DEADLINE)
    return connection


def read_all(connection: socket.socket) -> bytes:
    got = bytearray()
    while part := connection.recv(65536):
        got += part
    return bytes(got)


def test_there_and_back(folder: Path, server: Server) -> None:
    with forwarded(folder, server.address) as address, dial(address) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        client.sendall(b"the rest")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"THE REST"


def test_several_clients_with_much_to_say(folder: Path, server: Server) -> None:
    content = os.urandom(1 << 20) * 10
    expected = hashlib.sha256(content.upper()).digest()
    right: list[bool] = []

    def talk(address: str) -> None:
        with dial(address) as client:
            sending = threading.Thread(target=lambda: (client.sendall(content), client.shutdown(socket.SHUT_WR)))
            sending.start()
            right.append(hashlib.sha256(read_all(client)).digest() == expected)
            sending.join(DEADLINE)

    with forwarded(folder, server.address) as address:
        threads = [threading.Thread(target=talk, args=(address,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * DEADLINE)
    assert right == [True] * 3


def test_a_client_that_does_not_read_waits_alone(folder: Path, server: Server) -> None:
    with forwarded(folder, server.address) as address, dial(address) as lazy, dial(address) as other:
        lazy.settimeout(0.3)
        sizes: list[int] = []
        until_full(lambda _: sizes.append(lazy.send(b"x" * 65536)))  # so what is kept on the way has a limit
        other.sendall(b"goes on")
        assert other.recv(100) == b"GOES ON"
        lazy.settimeout(DEADLINE)
        lazy.shutdown(socket.SHUT_WR)
        assert read_all(lazy) == b"X" * sum(sizes)


def test_a_server_that_says_all_first(folder: Path, threads: Callable[..., threading.Thread]) -> None:
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(DEADLINE)
                connection.sendall(b"bye")
                connection.shutdown(socket.SHUT_WR)
                got.append(read_all(connection))

        serving = threads(serve)
        with forwarded(folder, f"tcp://127.0.0.1:{listening.getsockname()[1]}") as address, dial(address) as client:
            assert read_all(client) == b"bye"
            client.sendall(b"still here")
            client.shutdown(socket.SHUT_WR)
            serving.join(DEADLINE)
    assert got == [b"still here"]


def test_no_server(folder: Path, server: Server) -> None:
    server.close()
    with forwarded(folder, server.address) as address, dial(address) as client:
        assert read_all(client) == b""


def test_a_server_that_hangs_up(folder: Path, server: Server) -> None:
    with forwarded(folder, server.address) as address, dial(address) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        server.close()
        with contextlib.suppress(ConnectionResetError):
            assert read_all(client) == b""


def _serve_one(port: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port.send(listening.getsockname()[1])
        connection, _ = listening.accept()
        connection.sendall(connection.recv(100))
        threading.Event().wait(DEADLINE)


def test_a_server_that_is_killed(folder: Path, processes: Processes) -> None:
    port, theirs = multiprocessing.Pipe()
    with port, theirs:
        process = processes.start(_serve_one, theirs)
        assert port.poll(DEADLINE)
        address = f"tcp://127.0.0.1:{port.recv()}"
    with forwarded(folder, address) as entrance, dial(entrance) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        process.kill()
        with contextlib.suppress(ConnectionResetError):
            assert read_all(client) == b""
        with dial(entrance) as another:
            assert read_all(another) == b""


def test_a_client_that_hangs_up(folder: Path, server: Server) -> None:
    with forwarded(folder, server.address) as address:
        with dial(address) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
        with dial(address) as client:
            client.sendall(b"again")
            assert client.recv(100) == b"AGAIN"
        wait_until(lambda: len(server.connections) == 2, "both came")


def test_nobody_at_the_other_end() -> None:
    with (
        Stream() as streams,
        forward_in(streams, "tcp://127.0.0.1:0") as entrance,
        dial(entrance.address) as client,
    ):
        streams.close()
        assert read_all(client) == b""


def test_a_client_that_waits_for_its_stream_ends_with_the_entrance() -> None:
    with Stream() as streams, forward_in(streams, "tcp://127.0.0.1:0") as entrance, dial(entrance.address) as client:
        wait_until(lambda: len(streams._flows) == 1, "its stream is asked for")
        entrance.close()
        with contextlib.suppress(ConnectionResetError):
            assert read_all(client) == b""


def test_an_exit_that_is_closed_leaves_streams_to_others(
    ipc: str, server: Server, threads: Callable[..., threading.Thread]
) -> None:
    with Stream() as near, Stream() as far:
        far.listen(ipc)
        near.dial(ipc)
        forward_out(far, server.address).close()
        opened: list[Any] = []
        opening = threads(lambda: opened.append(near.connect(timeout=DEADLINE)))
        stream = far.accept(DEADLINE)
        opening.join(DEADLINE)
        opened[0].write(b"x")
        assert stream.read(1) == b"x"
        assert not server.connections


def test_bad_addresses(server: Server) -> None:
    with Stream() as streams:
        with pytest.raises(ms.AddressInUse):
            forward_in(streams, server.address)
        with pytest.raises(ms.BadAddress, match="plain tcp"):
            forward_in(streams, "ipc://x")
        with pytest.raises(ms.BadAddress):
            forward_out(streams, "tcp://nowhere")


def _forward_out(address: str, server: str) -> None:
    with Stream() as out:
        out.dial(address)
        with forward_out(out, server):
            threading.Event().wait(DEADLINE)


def test_what_breaks_on_the_way_is_no_ordinary_end(folder: Path, server: Server, processes: Processes) -> None:
    """A client must not take half of an answer for all of it."""
    with Stream() as streams, forward_in(streams, "tcp://127.0.0.1:0") as entrance:
        streams.listen(f"ipc://{folder}/s")
        other = processes.start(_forward_out, f"ipc://{folder}/s", server.address)
        with dial(entrance.address) as client:
            client.sendall(b"half")
            assert client.recv(100) == b"HALF"
            other.kill()
            with pytest.raises(ConnectionResetError):
                read_all(client)
