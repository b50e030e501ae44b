"""Streams of bytes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multisocket as ms
from conftest import DEADLINE, Processes, until_full, wait_until
from multisocket.message import CONTROL, NO_SOURCE, RAW, TO_DESTINATION
from multisocket.protocol import ByteStream, Stream, switch
from multisocket.protocol.flow import Flows, KeepAlive

Start = Callable[..., threading.Thread]


@contextmanager
def connected(address: str, **options: Any) -> Iterator[tuple[Stream, Stream]]:
    options = {"send_stop_timeout": 0.0, **options}
    with Stream(**options) as server, Stream(**options) as client:
        server.listen(address)
        client.dial(address)
        wait_until(lambda: server.socket.pipes, "both are connected")
        yield server, client


def both(server: Stream, client: Stream) -> tuple[ByteStream, ByteStream]:
    """The two ends of a new stream."""
    ours: list[ByteStream] = []
    thread = threading.Thread(target=lambda: ours.append(client.connect(timeout=DEADLINE)))
    thread.start()
    theirs = server.accept(DEADLINE)
    thread.join(DEADLINE)
    for end in (theirs, ours[0]):
        end.settimeout(DEADLINE)
    return theirs, ours[0]


def write_all(stream: ByteStream, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


def read_exactly(stream: ByteStream, n: int) -> bytes:
    got = b""
    while len(got) < n:
        part = stream.read(n - len(got))
        assert part, "the end came early"
        got += part
    return got


def test_bytes_both_ways(address: str) -> None:
    with connected(address) as (server, client):
        theirs, ours = both(server, client)
        with theirs, ours:
            assert ours.write(b"question") == 8
            assert read_exactly(theirs, 8) == b"question"
            theirs.write(b"answer")
            assert read_exactly(ours, 6) == b"answer"
            server_side, client_side = both(client, server)  # the listening side may open, too
            client_side.write(b"x")
            assert server_side.read(5) == b"x"
            server_side.close()
            client_side.close()


def test_much_of_it(address: str, threads: Start) -> None:
    content = os.urandom(1 << 20) * 5
    with connected(address) as (server, client):
        theirs, ours = both(server, client)

        def echo() -> None:
            while part := theirs.read(1 << 16):
                write_all(theirs, part)
            theirs.shutdown_write()

        def send() -> None:
            write_all(ours, content)
            ours.shutdown_write()

        threads(echo)
        threads(send)
        got = ours.readall()
        assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
        assert ours.reason is None
        assert theirs.reason is None


def test_as_a_file(address: str) -> None:
    with connected(address) as (server, client):
        theirs, ours = both(server, client)
        file, other = io.BufferedRWPair(theirs, theirs), io.BufferedRWPair(ours, ours)
        other.write(b"one\ntwo\n" + b"x" * 100000 + b"\n")
        other.flush()
        assert [file.readline() for _ in range(3)] == [b"one\n", b"two\n", b"x" * 100000 + b"\n"]
        text = io.TextIOWrapper(io.BufferedReader(ours), encoding="utf-8")
        file.write("grüß\ngott\n".encode())
        file.flush()
        theirs.shutdown_write()
        assert list(text) == ["grüß\n", "gott\n"]
        assert theirs.readable()
        assert theirs.writable()
        assert not theirs.seekable()
        with pytest.raises(io.UnsupportedOperation):
            theirs.seek(0)
        text.close()
        theirs.close()


def test_many_at_once(address: str, threads: Start) -> None:
    with connected(address) as (server, client):

        def serve() -> None:
            for _ in range(50):
                stream = server.accept(DEADLINE)
                threading.Thread(target=answer, args=(stream,)).start()

        def answer(stream: ByteStream) -> None:
            with stream:
                stream.settimeout(DEADLINE)
                write_all(stream, stream.readall()[::-1])
                stream.shutdown_write()

        right = []

        def ask(number: int) -> None:
            content = b"%d" % number * 1000
            with client.connect(timeout=DEADLINE) as stream:
                stream.settimeout(DEADLINE)
                write_all(stream, content)
                stream.shutdown_write()
                right.append(stream.readall() == content[::-1])

        threads(serve)
        asking = [threads(ask, number) for number in range(50)]
        for thread in asking:
            thread.join(DEADLINE)
        assert right == [True] * 50
        wait_until(lambda: len(client._flows) == len(server._flows) == 0, "nothing is kept of those that are closed")


def test_a_writer_waits_for_a_slow_reader_and_nobody_else_does(address: str) -> None:
    with connected(address, window=10000) as (server, client):
        theirs, ours = both(server, client)
        other_theirs, other_ours = both(server, client)
        ours.settimeout(0.05)
        assert sum(ours.write(b"x" * 3000) for _ in range(4)) == 10000
        with pytest.raises(ms.Timeout, match="read nothing"):
            ours.write(b"x")
        other_ours.write(b"goes on")
        assert read_exactly(other_theirs, 7) == b"goes on"
        ours.settimeout(DEADLINE)
        assert read_exactly(theirs, 6000) == b"x" * 6000
        assert ours.write(b"y") == 1
        assert read_exactly(theirs, 4001) == b"x" * 4000 + b"y"


def test_half_close(address: str) -> None:
    with connected(address) as (server, client):
        theirs, ours = both(server, client)
        ours.write(b"all")
        ours.shutdown_write()
        ours.shutdown_write()
        assert theirs.readall() == b"all"
        assert theirs.read(1) == b""
        with pytest.raises(ms.BrokenPath, match="shutdown_write"):
            ours.write(b"x")
        write_all(theirs, b"still")
        theirs.close()
        assert ours.readall() == b"still"
        assert ours.reason is None


def test_close_is_the_end_for_the_peer(address: str) -> None:
    with connected(address) as (server, client):
        theirs, ours = both(server, client)
        ours.write(b"last words")
        ours.close()
        ours.close()
        assert theirs.readall() == b"last words"
        with pytest.raises(ms.BrokenPath, match="closed"):
            theirs.write(b"x")
        assert theirs.reason is None
        for call in (lambda: ours.read(1), lambda: ours.write(b"x"), ours.shutdown_write):
            with pytest.raises(ValueError, match="closed"):
                call()


def test_a_waiting_read_ends_with_the_peers_close(address: str, threads: Start) -> None:
    with connected(address) as (server, client):
        theirs, ours = both(server, client)
        got: list[bytes] = []
        thread = threads(lambda: got.append(theirs.readall()))
        ours.close()
        thread.join(DEADLINE)
        assert got == [b""]


@pytest.mark.parametrize("who", ["server", "client"])
def test_closing_the_protocol_ends_its_streams(address: str, threads: Start, who: str) -> None:
    with connected(address) as (server, client):
        theirs, ours = both(server, client)
        ours.write(b"x")
        assert theirs.read(1) == b"x"
        errors: list[BaseException] = []

        def accept() -> None:
            try:
                server.accept()
            except ms.Closed as error:
                errors.append(error)

        waiting = threads(accept)
        reading = threads(theirs.readall)
        (server if who == "server" else client).close()
        reading.join(DEADLINE)
        assert not reading.is_alive()
        assert ours.readall() == b""
        for end in (ours, theirs):
            with pytest.raises((ms.Closed, ms.BrokenPath)):
                end.write(b"x")
        server.close()
        waiting.join(DEADLINE)
        assert errors
        with pytest.raises(ms.Closed):
            server.accept(0)


def _write_and_wait(address: str, ready: Any) -> None:
    with Stream() as client:
        client.dial(address)
        stream = client.connect()
        write_all(stream, b"x" * 100000)
        ready.set()
        threading.Event().wait(DEADLINE)


def _event() -> Any:
    import multiprocessing

    return multiprocessing.get_context("fork").Event()


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_killed_peer_ends_the_stream_after_what_it_had_sent(folder: Path, processes: Processes, scheme: str) -> None:
    with Stream() as server:
        address = server.listen(f"ipc://{folder}/s" if scheme == "ipc" else "tcp://127.0.0.1:0").address
        ready = _event()
        peer = processes.start(_write_and_wait, address, ready)
        stream = server.accept(DEADLINE)
        stream.settimeout(DEADLINE)
        assert read_exactly(stream, 10) == b"x" * 10
        assert ready.wait(DEADLINE)
        peer.kill()
        if scheme == "ipc":
            assert stream.readall() == b"x" * 99990
        else:
            assert set(stream.readall()) == {ord("x")}
        assert stream.reason is not None
        with pytest.raises(ms.BrokenPath, match="gone"):
            stream.write(b"y")
        stream.close()


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_silent_peer_is_given_up(folder: Path, processes: Processes, scheme: str) -> None:
    options: dict[str, Any] = {"idle_time": 0.2, "probe_interval": 0.1, "probes": 3}
    with Stream(**options) as server:
        address = server.listen(f"ipc://{folder}/s" if scheme == "ipc" else "tcp://127.0.0.1:0").address
        ready, other_ready = _event(), _event()
        silent = processes.start(_write_and_wait, address, ready)
        first = server.accept(DEADLINE)
        alive = processes.start(_write_and_wait, address, other_ready)
        second = server.accept(DEADLINE)
        for stream in (first, second):
            stream.settimeout(DEADLINE)
            read_exactly(stream, 100000)
        assert ready.wait(DEADLINE)
        os.kill(silent.pid, signal.SIGSTOP)
        assert first.readall() == b""
        assert first.reason is not None
        assert "did not answer" in first.reason
        assert second.reason is None
        second.write(b"x")
        for process in (silent, alive):
            process.kill()
            process.join()
        for stream in (first, second):
            stream.close()


def test_nobody_accepts(address: str) -> None:
    with connected(address) as (server, client):
        with pytest.raises(ms.Timeout, match="accepted"):
            client.connect(timeout=0.05)
        # It is over when it is accepted at last.
        stream = server.accept(DEADLINE)
        stream.settimeout(DEADLINE)
        assert stream.readall() == b""
        with pytest.raises(ms.Timeout, match="opened"):
            server.accept(0.01)


def _catch(errors: list[BaseException], call: Callable[[], object]) -> None:
    try:
        call()
    except BaseException as error:
        errors.append(error)


def test_closing_refuses_streams_that_nobody_has_accepted(address: str, threads: Start) -> None:
    with connected(address) as (server, client):
        errors: list[BaseException] = []
        waiting = threads(_catch, errors, lambda: client.connect(timeout=DEADLINE))
        wait_until(lambda: len(server._flows) == 1, "it waits to be accepted")
        server.close()
        waiting.join(DEADLINE)
        assert [type(error) for error in errors] == [ms.ConnectionRefused]


def test_closing_wakes_whoever_opens_or_writes(address: str, threads: Start) -> None:
    with connected(address, window=1) as (server, client):
        _, ours = both(server, client)
        ours.write(b"x")
        errors: list[BaseException] = []
        waiting = [
            threads(_catch, errors, lambda: ours.write(b"y")),
            threads(_catch, errors, lambda: client.connect(timeout=DEADLINE)),
        ]
        wait_until(lambda: len(server._flows) == 2, "the second one is opened")
        client.close()
        for thread in waiting:
            thread.join(DEADLINE)
        assert [type(error) for error in errors] == [ms.Closed, ms.Closed]


def test_a_waiting_writer_ends_with_shutdown_and_close_of_its_own_side(address: str, threads: Start) -> None:
    with connected(address, window=1) as (server, client):
        for end in (ByteStream.shutdown_write, ByteStream.close):
            _, ours = both(server, client)
            ours.write(b"x")
            errors: list[BaseException] = []
            writing = threads(_catch, errors, lambda ours=ours: ours.write(b"y"))
            end(ours)
            writing.join(DEADLINE)
            assert isinstance(errors[0], (ms.BrokenPath, ValueError))


def test_whoever_accepts_may_take_longer_than_peers_may_be_silent(address: str, threads: Start) -> None:
    with connected(address, idle_time=0.05, probe_interval=0.05, probes=200) as (server, client):
        other, _other = both(server, client)  # there is one to look after
        opened: list[ByteStream] = []
        waiting = threads(lambda: opened.append(client.connect(timeout=DEADLINE)))
        wait_until(lambda: len(server._flows) == 2, "it waits to be accepted")
        other.settimeout(0.3)
        with pytest.raises(ms.Timeout):
            other.read(1)
        assert other.reason is None
        theirs = server.accept(DEADLINE)
        waiting.join(DEADLINE)
        opened[0].write(b"x")
        assert theirs.read(1) == b"x"
        assert theirs.reason is None


@pytest.mark.parametrize("idle_time", [1e9, float("inf")])
def test_keep_alive_may_be_turned_off(idle_time: float) -> None:
    flows = Flows(1000, 1, KeepAlive(idle_time, 1.0, 7))
    flows.heard(ms.Message(struct.pack(">BIII", OPEN, 0, 7, 1000), flags=CONTROL, source=(1,)), 0.0)
    assert flows.accept(lambda msg: None, 0.0) is not None
    look = flows.next_look(0.0)
    assert look is not None
    with selectors.DefaultSelector() as selector, socket.socket() as ready:
        selector.register(ready, selectors.EVENT_WRITE)
        selector.select(look)  # raises when no thread could wait for so long
    assert flows.look(look) == []


def test_too_many_wait_to_be_accepted(address: str, threads: Start) -> None:
    with connected(address, backlog=2) as (server, client):
        opened: list[ByteStream] = []
        waiting = [threads(lambda: opened.append(client.connect(timeout=DEADLINE))) for _ in range(2)]
        wait_until(lambda: len(server._flows) == 2, "both wait")
        with pytest.raises(ms.ConnectionRefused, match="wait there"):
            client.connect(timeout=DEADLINE)
        accepted = [server.accept(DEADLINE) for _ in range(2)]
        for thread in waiting:
            thread.join(DEADLINE)
        assert len(opened) == len(accepted) == 2


def _relay(front: str, back: str) -> contextlib.ExitStack:
    """A node between two addresses: listens at the one, dials the other."""
    stack = contextlib.ExitStack()
    near, far = ms.Socket(send_stop_timeout=0), ms.Socket(send_stop_timeout=0)
    near.listen(front)
    far.dial(back)
    stack.enter_context(switch(near, far))
    return stack


def test_through_switches(folder: Path, threads: Start) -> None:
    addresses = [f"inproc://{folder.name}", f"ipc://{folder}/s"]
    with Stream() as server, Stream() as client:
        addresses.append(server.listen("tcp://127.0.0.1:0").address)
        with _relay(addresses[1], addresses[2]), _relay(addresses[0], addresses[1]):
            client.dial(addresses[0])
            theirs, ours = both(server, client)
            assert len(ours.peer) == len(theirs.peer) == 3
            content = os.urandom(1 << 20)

            def send() -> None:
                write_all(ours, content)
                ours.shutdown_write()

            threads(send)
            assert theirs.readall() == content
            write_all(theirs, b"back")
            theirs.shutdown_write()
            assert ours.readall() == b"back"


def test_only_where_it_was_made(ipc: str, processes: Processes) -> None:
    with connected(ipc) as (server, client):
        theirs, _ = both(server, client)

        def child() -> None:
            for call in (client.connect, server.accept, lambda: theirs.read(1)):
                with pytest.raises(ms.NotSupported):
                    call()

        processes.join(processes.start(child))
        for one in (server, theirs):
            with pytest.raises(ms.NotSupported, match="in the other"):
                pickle.dumps(one)


def test_a_child_ends_no_stream_of_its_parent(ipc: str, processes: Processes, threads: Start) -> None:
    with connected(ipc) as (server, client):
        theirs, ours = both(server, client)

        def echo() -> None:
            while part := theirs.read(1 << 16):
                write_all(theirs, part)

        def child() -> None:
            ours.close()
            client.close()

        echoing = threads(echo)
        for _ in range(5):  # at any instant: also when a thread of the parent has a lock
            write_all(ours, b"x" * 10000)
            child_process = processes.start(child)
            assert read_exactly(ours, 10000) == b"x" * 10000
            processes.join(child_process)
        ours.close()
        echoing.join(DEADLINE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"backlog": 0},
        {"idle_time": -1},
        {"probe_interval": "x"},
        {"probes": 0},
        {"no_such": 1},
        {"no_recv": True},
        {"no_send": True},
        {"send_best_effort": True},
    ],
)
def test_bad_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ms.BadOption):
        Stream(**wrong)


def test_connect_with_an_address_is_that_of_all_protocols(address: str) -> None:
    with Stream() as server, Stream() as client:
        server.connect(f"{address}#listen")
        client.connect(address)
        theirs, ours = both(server, client)
        ours.write(b"x")
        assert theirs.read(1) == b"x"


# --- peers that do not keep to the rules ---

OPEN, ACCEPT, CREDIT, END, CLOSE, RESET, PROBE = range(1, 8)


@contextmanager
def raw_peer(room: int = 1000, **options: Any) -> Iterator[tuple[Stream, ms.Socket, ByteStream, int]]:
    """A Stream, a Socket that speaks to it by hand and has room for so many messages, a stream between the two and its
    number there."""
    name = f"inproc://raw-{os.getpid()}-{time.monotonic_ns()}"
    with Stream(**options) as server, ms.Socket(recv_timeout=DEADLINE, recv_queue_size=room) as peer:
        server.listen(name)
        peer.dial(name)
        peer.send_msg(ms.Message(struct.pack(">BIII", OPEN, 0, 7, 1000), flags=CONTROL))
        stream = server.accept(DEADLINE)
        stream.settimeout(DEADLINE)
        kind, to, number, _ = struct.unpack(">BIII", peer.recv())
        assert (kind, to) == (ACCEPT, 7)
        yield server, peer, stream, number


def control(peer: ms.Socket, body: bytes) -> None:
    path = (peer.pipes[0].id,)
    peer.send_msg(ms.Message(body, send_type=TO_DESTINATION, destination=path, flags=CONTROL))


def test_more_than_the_window_breaks_the_stream() -> None:
    with raw_peer(window=100) as (_, peer, stream, number):
        peer.send(struct.pack(">II", number, 7) + b"x" * 40)
        assert read_exactly(stream, 40) == b"x" * 40  # too little to be given credit for
        peer.send(struct.pack(">II", number, 7) + b"x" * 61)
        assert stream.readall() == b""
        assert "rules" in str(stream.reason)
        assert peer.recv()[0] == RESET


def test_others_cannot_speak_for_the_peer() -> None:
    with raw_peer() as (server, peer, stream, number), ms.Socket(recv_timeout=DEADLINE) as thief:
        thief.dial(server.socket.pipes[0].address)
        thief.send(struct.pack(">II", number, 7) + b"stolen")
        assert thief.recv()[0] == RESET
        peer.send(struct.pack(">II", number, 8) + b"wrong number")
        assert peer.recv()[0] == RESET
        peer.send(struct.pack(">II", number, 7) + b"right")
        assert stream.read(100) == b"right"


def test_too_much_credit_breaks_the_stream() -> None:
    with raw_peer() as (_, peer, stream, number):
        control(peer, struct.pack(">BIII", CREDIT, number, 7, 0xFFFFFFFF))
        assert stream.readall() == b""
        assert "rules" in str(stream.reason)


def fill_inbox(stream: ByteStream) -> int:
    """Of the peer, which has given credit enough; how many bytes."""
    stream.settimeout(0.01)
    return until_full(lambda _: stream.write(b"x"))


def test_the_end_is_not_lost_when_the_peer_has_no_room() -> None:
    with raw_peer(room=2) as (_, peer, stream, number):
        n = fill_inbox(stream)
        with pytest.raises(ms.Timeout):
            stream.shutdown_write()
        for _ in range(n):
            assert peer.recv() == struct.pack(">II", 7, number) + b"x"
        stream.shutdown_write()
        assert peer.recv() == struct.pack(">BII", END, 7, number)


def test_credit_is_not_lost_when_the_peer_has_no_room(threads: Start) -> None:
    with raw_peer(room=2, window=100) as (_, peer, stream, number):
        n = fill_inbox(stream)
        peer.send(struct.pack(">II", number, 7) + b"y" * 100)
        stream.settimeout(DEADLINE)
        assert read_exactly(stream, 100) == b"y" * 100  # although nobody can be told
        reading = threads(stream.read, 1)
        for _ in range(n):
            assert peer.recv()[8:] == b"x"
        given = 0
        while given < 100:
            kind, to, origin, more = struct.unpack(">BIII", peer.recv())
            assert (kind, to, origin) == (CREDIT, 7, number)
            given += more
        peer.send(struct.pack(">II", number, 7) + b"z" * 100)
        reading.join(DEADLINE)


def test_a_write_that_found_no_room_may_be_tried_again() -> None:
    with raw_peer(room=2) as (_, peer, stream, _):
        n = fill_inbox(stream)
        for _ in range(n):
            peer.recv()
        stream.settimeout(DEADLINE)
        left = 1000 - n
        assert stream.write(b"y" * 2000) == left  # no credit was lost
        assert peer.recv()[8:] == b"y" * left


def test_a_peer_that_takes_nothing_keeps_nobody_from_being_accepted(threads: Start) -> None:
    with raw_peer(room=1) as (server, peer, stream, _), Stream() as client:
        fill_inbox(stream)
        for i in range(5):
            peer.send_msg(ms.Message(struct.pack(">BIII", OPEN, 0, 100 + i, 1000), flags=CONTROL))
        client.dial(server.socket.pipes[0].address)
        opened: list[ByteStream] = []
        opening = threads(lambda: opened.append(client.connect(timeout=DEADLINE)))
        theirs = server.accept(DEADLINE)
        opening.join(DEADLINE)
        opened[0].write(b"x")
        assert theirs.read(1) == b"x"
        with pytest.raises(ms.Timeout, match="opened"):
            server.accept(0.05)
        got = []
        while len(got) < 5:  # it takes again what it is told
            accepting = threads(server.accept, DEADLINE)
            while (body := peer.recv())[0] != ACCEPT:
                pass
            got.append(struct.unpack_from(">I", body, 1)[0])
            accepting.join(DEADLINE)
        assert sorted(got) == [100, 101, 102, 103, 104]


def test_nothing_is_kept_of_a_peer_that_has_opened_streams_and_gone() -> None:
    with raw_peer(backlog=4) as (server, _, _, _):
        address = server.socket.pipes[0].address
        for _ in range(5):
            with ms.Socket() as thief:
                thief.dial(address)
                for i in range(10):
                    thief.send_msg(ms.Message(struct.pack(">BIII", OPEN, 0, 1 + i, 1000), flags=CONTROL))
                wait_until(lambda: len(server._flows) == 5, "as many wait as may")
            wait_until(lambda: len(server._flows) == 1, "they are forgotten")


def test_only_one_accepts_and_only_once(threads: Start) -> None:
    with raw_peer() as (server, peer, _, _):
        opened: list[ByteStream] = []
        opening = threads(lambda: opened.append(server.connect(timeout=DEADLINE)))
        number = struct.unpack_from(">I", peer.recv(), 5)[0]
        accept = struct.pack(">BIII", ACCEPT, number, 9, 10)
        peer.send_msg(ms.Message(accept, flags=CONTROL | NO_SOURCE))  # nobody
        control(peer, struct.pack(">BII", PROBE, number, 9))  # too early
        control(peer, struct.pack(">BIII", ACCEPT, number, 0, 10))  # no number
        for _ in range(2):
            control(peer, accept)
        opening.join(DEADLINE)
        stream = opened[0]
        stream.settimeout(0.05)
        peer.send(struct.pack(">II", number, 9) + b"x")
        assert stream.read(1) == b"x"  # so all before has been heeded
        assert stream.write(b"x" * 20) == 10
        with pytest.raises(ms.Timeout):
            stream.write(b"x")


def test_programs_that_know_nothing_of_streams_do_no_harm() -> None:
    with raw_peer() as (server, peer, stream, number):
        listener = server.listen("tcp://127.0.0.1:0", raw=True)
        with socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2])), DEADLINE) as program:
            program.sendall(b"GET / HTTP/1.0\r\n\r\n")
            program.shutdown(socket.SHUT_WR)
            assert program.recv(100) == b""
        peer.send(struct.pack(">II", number, 7) + b"x")
        assert stream.read(1) == b"x"


def test_resets_are_not_answered() -> None:
    with raw_peer() as (_, peer, stream, number):
        control(peer, struct.pack(">BII", RESET, 12345, 7) + b"why")
        control(peer, struct.pack(">BII", RESET, number, 7) + b"because")
        assert stream.readall() == b""
        assert stream.reason == "because"
        with pytest.raises(ms.Timeout):
            peer.recv(0.02)


def _almost_right() -> st.SearchStrategy[bytes]:
    """Control messages from the right peer, whose stream's number is to be put where the stars are."""
    kinds = st.integers(0, 10).map(lambda kind: bytes([kind]))
    numbers = st.sampled_from([b"****", b"\0\0\0\0", b"\0\0\0\7", b"\xff\xff\xff\xff"])
    return st.tuples(kinds, numbers, numbers, st.binary(max_size=8)).map(b"".join)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bodies=st.lists(
        st.tuples(st.binary(max_size=40) | _almost_right(), st.sampled_from([0, CONTROL, NO_SOURCE, RAW])), max_size=30
    )
)
def test_nonsense_does_no_harm(bodies: list[tuple[bytes, int]]) -> None:
    with raw_peer(backlog=3) as (server, peer, _, number):
        for body, flags in bodies:
            body = body.replace(b"****", struct.pack(">I", number))
            peer.send_msg(ms.Message(body, flags=flags))
        opened = threading.Thread(target=lambda: server.connect(timeout=DEADLINE).close())
        opened.start()
        while True:
            body = peer.recv()
            if len(body) == 13 and body[0] == OPEN:
                break
        (number,) = struct.unpack(">I", body[5:9])
        control(peer, struct.pack(">BIII", ACCEPT, number, 99, 10))
        opened.join(DEADLINE)
        assert not opened.is_alive()
