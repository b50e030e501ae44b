"""Listeners, dialers, pipes and their events, over each local transport."""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

import multisocket as ms
from conftest import DEADLINE, Processes, connected, wait_until

Make = Callable[..., ms.Socket]
Pair = tuple[ms.Socket, ms.Socket]


def test_nobody_listens(make_socket: Make, address: str) -> None:
    sock = make_socket()
    with pytest.raises(ms.ConnectionRefused, match="listens"):
        sock.dial(address)
    assert sock.pipes == []


def test_address_in_use(make_socket: Make, address: str) -> None:
    make_socket().listen(address)
    with pytest.raises(ms.AddressInUse, match="in use"):
        make_socket().listen(address)


def test_address_is_free_after_close(make_socket: Make, address: str) -> None:
    first = make_socket()
    first.listen(address)
    first.close()
    make_socket().listen(address)


def test_connect_with_direction(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket()
    assert isinstance(server.connect(f"{address}#listen"), ms.Listener)
    assert isinstance(client.connect(f"{address}?reconnect=false#dial"), ms.Dialer)
    client.send(b"x")
    assert server.recv(DEADLINE) == b"x"


@pytest.mark.local
def test_pipes_tell_who_is_there(pair: Pair, address: str) -> None:
    for sock, dialed in zip(pair, (False, True), strict=True):
        (pipe,) = sock.pipes
        assert (pipe.id, pipe.address, pipe.dialed, pipe.peer_pid) == (1, address, dialed, os.getpid())


def test_abstract_addresses(make_socket: Make, folder: Path) -> None:
    server, client = connected(make_socket, f"ipc://@{folder.name}")
    client.send(b"x")
    assert server.recv(DEADLINE) == b"x"
    with pytest.raises(ms.AddressInUse):
        make_socket().listen(f"ipc://@{folder.name}")


def test_relative_paths(make_socket: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    server, _ = connected(make_socket, "ipc://jobs.sock")
    monkeypatch.chdir("/")
    server.close()
    assert not (folder / "jobs.sock").exists()


def test_a_stale_path_is_replaced(make_socket: Make, folder: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(f"{folder}/s")
    connected(make_socket, f"ipc://{folder}/s")


def test_messages_wait_for_the_first_peer(make_socket: Make, address: str) -> None:
    client, server = make_socket(send_queue_size=3, send_timeout=0.01), make_socket()
    for i in range(3):
        client.send(b"%d" % i)
    with pytest.raises(ms.Timeout):
        client.send(b"too many")
    assert client.stats()["pending"] == 3
    server.listen(address)
    client.dial(address)
    client.send(b"3")
    assert [server.recv(DEADLINE) for _ in range(4)] == [b"0", b"1", b"2", b"3"]


def test_a_blocked_send_goes_on_when_a_peer_connects(
    make_socket: Make, address: str, threads: Callable[..., object]
) -> None:
    client, server = make_socket(send_queue_size=1), make_socket()
    client.send(b"0")
    threads(client.send, b"1")
    server.listen(address)
    client.dial(address)
    assert [server.recv(DEADLINE), server.recv(DEADLINE)] == [b"0", b"1"]


def test_close_waits_for_what_is_kept(make_socket: Make, address: str, threads: Callable[..., object]) -> None:
    client, server = make_socket(send_stop_timeout=DEADLINE), make_socket()
    client.dial(address, dial_async=True, min_reconnect_time=0.01, max_reconnect_time=0.02)
    client.send(b"kept")
    threads(client.close)
    server.listen(address)
    assert server.recv(DEADLINE) == b"kept"


@pytest.mark.local
def test_reconnecting(make_socket: Make, address: str) -> None:
    client, server = make_socket(), make_socket()
    server.listen(address)
    client.dial(address, min_reconnect_time=0.01, max_reconnect_time=0.05)
    for i in range(3):
        server.close()
        server = make_socket()
        server.listen(address)
        client.send(b"%d" % i)
        assert server.recv(DEADLINE) == b"%d" % i


def test_closed_pipes_are_dialed_again(pair: Pair) -> None:
    server, client = pair
    before = client.pipes[0].id
    server.close_pipe(wait_until(lambda: server.pipes, "the server has its pipe")[0].id)
    wait_until(lambda: client.pipes and client.pipes[0].id != before, "a new pipe")
    client.send(b"x")
    assert server.recv(DEADLINE) == b"x"
    with pytest.raises(ms.BadAddress, match="no pipe"):
        client.close_pipe(before)


def test_no_reconnect(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket()
    server.listen(address)
    client.dial(address, reconnect=False)
    wait_until(lambda: server.pipes, "connected")
    server.close_pipe(server.pipes[0].id)
    wait_until(lambda: not client.pipes, "the pipe is gone")
    assert client.stats()["pending"] == 0


def test_dial_async_keeps_trying(make_socket: Make, address: str) -> None:
    client, server = make_socket(), make_socket()
    client.dial(address, dial_async=True, min_reconnect_time=0.01, max_reconnect_time=0.02)
    server.listen(address)
    server.send(b"you came")
    assert client.recv(DEADLINE) == b"you came"


def test_stop_listening_and_dialing_keeps_pipes(make_socket: Make, address: str) -> None:
    server, client = connected(make_socket, address)
    server.stop_listen(address)
    client.stop_dial(address)
    with pytest.raises(ms.ConnectionRefused):
        make_socket().dial(address)
    client.send(b"still here")
    assert server.recv(DEADLINE) == b"still here"
    for stop in (server.stop_listen, client.stop_dial):
        with pytest.raises(ms.BadAddress, match="not in use here"):
            stop(address)
    server.close_pipe(server.pipes[0].id)
    wait_until(lambda: not client.pipes, "gone, and not dialed again")


def test_listener_and_dialer_can_be_closed(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket()
    listener = server.listen(address)
    assert listener.address == address
    dialer = client.dial(address)
    dialer.close()
    listener.close()
    listener.close()
    make_socket().listen(address)


@pytest.mark.local
def test_pipe_limit(make_socket: Make, address: str) -> None:
    server = make_socket(pipe_limit=2)
    server.listen(address)
    first, second, third = (make_socket() for _ in range(3))
    first.dial(address)
    second.dial(address)
    with pytest.raises(ms.ConnectionRefused, match="2 pipes"):
        third.dial(address)
    first.close()
    wait_until(lambda: len(server.pipes) == 1, "a place is free")
    third.dial(address)


def test_pipe_events(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket()
    events: list[tuple[str, int]] = []
    server.on_pipe = lambda event, pipe: events.append((event, pipe.id))
    server.listen(address)
    client.dial(address, reconnect=False)
    wait_until(lambda: events == [("open", 1)], "it opened")
    client.close()
    wait_until(lambda: events == [("open", 1), ("close", 1)], "it closed")


def test_closing_a_pipe_as_soon_as_it_opens(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket()
    server.on_pipe = lambda event, pipe: server.close_pipe(pipe.id) if event == "open" else None
    server.listen(address)
    with contextlib.suppress(ms.ConnectionRefused):
        client.dial(address, reconnect=False)
    wait_until(lambda: not server.pipes and not client.pipes, "no pipe is left")


def test_an_event_handler_that_raises_harms_nobody(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket()
    server.on_pipe = lambda event, pipe: 1 / 0  # type: ignore[return-value]
    server.listen(address)
    client.dial(address)
    client.send(b"x")
    assert server.recv(DEADLINE) == b"x"


def _raise(pipe: ms.Pipe) -> bool:
    raise ValueError("not you")


@pytest.mark.parametrize("side", ["listening", "dialing"])
@pytest.mark.parametrize("refuse", [lambda pipe: False, _raise])
@pytest.mark.local
def test_negotiator_refuses(make_socket: Make, address: str, side: str, refuse: Callable[..., bool]) -> None:
    server, client = make_socket(), make_socket()
    (server if side == "listening" else client).negotiator = refuse
    server.listen(address)
    with pytest.raises(ms.ConnectionRefused, match="negotiator"):
        client.dial(address)
    wait_until(lambda: not server.pipes and not client.pipes, "no pipe is left")


def test_negotiator_accepts(make_socket: Make, address: str) -> None:
    server, client = make_socket(), make_socket()
    seen: list[ms.Pipe] = []
    server.negotiator = seen.append
    server.listen(address)
    client.dial(address)
    wait_until(lambda: server.pipes, "connected")
    assert seen == server.pipes


@pytest.mark.local
def test_to_one_messages_of_a_closed_peer_go_to_another(make_socket: Make, address: str) -> None:
    server, first, second = make_socket(), make_socket(), make_socket()
    server.listen(address)
    first.dial(address)
    wait_until(lambda: server.pipes, "connected")
    server.send_many([b"%d" % i for i in range(50)])
    server.send_all(b"only for who is there")
    assert first.recv_many(20) == [b"%d" % i for i in range(20)]
    second.dial(address)
    wait_until(lambda: len(server.pipes) == 2, "connected")
    first.close()
    assert [second.recv(DEADLINE) for _ in range(30)] == [b"%d" % i for i in range(20, 50)]
    with pytest.raises(ms.Timeout):
        second.recv(timeout=0)


@pytest.mark.local
def test_unreceived_messages_wait_for_the_next_peer(make_socket: Make, address: str) -> None:
    server, first, second = make_socket(), make_socket(), make_socket()
    server.listen(address)
    first.dial(address)
    wait_until(lambda: server.pipes, "connected")
    server.send_many([b"1", b"2"])
    first.close()
    wait_until(lambda: not server.pipes, "the pipe is gone")
    second.dial(address)
    assert [second.recv(DEADLINE), second.recv(DEADLINE)] == [b"1", b"2"]


def test_pipe_ids_are_not_used_again_soon(make_socket: Make, address: str) -> None:
    server = make_socket()
    server.listen(address)
    seen = set()
    for _ in range(5):
        client = make_socket()
        client.dial(address)
        client.send(b"x")
        seen.add(server.recv_msg(DEADLINE).source)
        client.close()
        wait_until(lambda: not server.pipes, "the pipe is gone")
    assert len(seen) == 5


# --- peers that are no multisocket ---


def _stranger(path: str, said: bytes) -> bytes:
    with sockets.socket(sockets.AF_UNIX) as stranger:
        stranger.settimeout(DEADLINE)
        stranger.connect(path)
        stranger.sendall(said)
        answer = b""
        while part := stranger.recv(4096):
            answer += part
        return answer


def _hello(**changes: object) -> bytes:
    body = {
        "multisocket": 1,
        "segment": "/ms-0123456789ab-1",
        "pipe": 1,
        "receives": True,
        "pid": 1,
        **changes,
    }
    packed = msgpack.packb(body)
    return struct.pack(">I", len(packed)) + packed


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 5) + b"\xc1\xc1\xc1\xc1\xc1",
        struct.pack(">I", 1) + b"\x05",
        _hello(multisocket=99),
        _hello(segment="/../../etc/passwd"),
        _hello(segment=7),
        _hello(pipe=-1),
        _hello(pipe="x"),
        _hello(),
    ],
)
def test_strangers_are_refused(make_socket: Make, folder: Path, said: bytes) -> None:
    server = make_socket()
    server.listen(f"ipc://{folder}/s")
    assert b"refused" in _stranger(f"{folder}/s", said)
    client = make_socket()
    client.dial(f"ipc://{folder}/s")
    client.send(b"x")
    assert server.recv(DEADLINE) == b"x"


def test_dialing_a_stranger(make_socket: Make, folder: Path, threads: Callable[..., object]) -> None:
    with sockets.socket(sockets.AF_UNIX) as stranger:
        stranger.bind(f"{folder}/s")
        stranger.listen()

        def answer() -> None:
            connection, _ = stranger.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        threads(answer)
        client = make_socket()
        with pytest.raises(ms.BadMessage, match="no hello"):
            client.dial(f"ipc://{folder}/s")
        assert client.pipes == []
    os.unlink(f"{folder}/s")


def test_a_child_of_fork_does_not_close_its_parents_listener(make_socket: Make, ipc: str, processes: Processes) -> None:
    server, client = make_socket(), make_socket()
    listener = server.listen(ipc)
    processes.join(processes.start(listener.close))
    client.dial(ipc)


def test_a_dialer_that_is_closed_in_its_handshake_gets_no_pipe(make_socket: Make, folder: Path) -> None:
    closed = threading.Event()

    def wait_for_it(_: ms.Pipe) -> None:
        assert closed.wait(DEADLINE)

    server, client = make_socket(), make_socket()
    server.listen(f"ipc://{folder}/s")
    client.negotiator = wait_for_it
    dialer = client.dial(f"ipc://{folder}/s", dial_async=True)
    dialer.close()
    closed.set()
    wait_until(lambda: not server.pipes, "the server's pipe is closed")
    assert not client.pipes


def test_a_peer_of_another_pid_namespace_is_refused(make_socket: Make, ipc: str) -> None:
    make_socket().listen(ipc)
    code = f"import multisocket as ms; ms.Socket().dial({ipc!r})"
    command = ["unshare", "--pid", "--fork"]
    if os.geteuid() != 0 or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody make a PID namespace (unshare --pid)")
    done = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert "PID namespace" in done.stderr
