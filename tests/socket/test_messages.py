"""Sending and receiving: what arrives, where, and how the ways to send differ."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multisocket as ms
from conftest import DEADLINE, connected, wait_until
from multisocket.message import CONTROL, NO_SOURCE, TO_ALL, TO_DESTINATION, TO_ONE

Pair = tuple[ms.Socket, ms.Socket]
Make = Callable[..., ms.Socket]


def test_both_ways(pair: Pair) -> None:
    server, client = pair
    client.send(b"there")
    server.send(b"back")
    assert server.recv(DEADLINE) == b"there"
    assert client.recv(DEADLINE) == b"back"


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4095, 32767, 32768, 1 << 20])
def test_sizes(pair: Pair, size: int) -> None:
    content = os.urandom(size)
    pair[1].send(content)
    msg = pair[0].recv_msg(DEADLINE)
    assert msg.content == content
    pair[0].send_to(msg.source, content)
    assert pair[1].recv(DEADLINE) == content


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_anything_with_the_buffer_protocol(pair: Pair, kind: type) -> None:
    content = kind(b"content")
    pair[1].send(content)
    pair[1].send_many([content, b"bytes", content])
    pair[1].send_all(content)
    assert [pair[0].recv(DEADLINE) for _ in range(5)] == [b"content"] * 2 + [b"bytes"] + [b"content"] * 2


@pytest.mark.parametrize("content", ["text", 5, None, [b"list"]])
def test_content_that_is_none(pair: Pair, content: object) -> None:
    with pytest.raises(TypeError):
        pair[1].send(content)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pair[1].send_many([b"fine", content])  # type: ignore[list-item]


def test_a_message_knows_where_it_came_from(pair: Pair) -> None:
    server, client = pair
    client.send(b"question")
    msg = server.recv_msg(DEADLINE)
    assert (msg.send_type, msg.ttl, msg.hops, msg.source, msg.destination) == (TO_ONE, 15, 1, (1,), ())
    assert msg.pipe_id == server.pipes[0].id == 1
    server.send_to(msg.source, b"answer")
    answer = client.recv_msg(DEADLINE)
    assert (answer.content, answer.send_type, answer.destination) == (b"answer", TO_DESTINATION, ())


def test_to_all(make_socket: Make, address: str) -> None:
    server = make_socket()
    server.listen(address)
    assert server.send_all(b"nobody") == 0
    clients = [make_socket() for _ in range(3)]
    for client in clients:
        client.dial(address)
    wait_until(lambda: len(server.pipes) == 3, "all are connected")
    assert server.send_all(b"news") == 3
    for client in clients:
        msg = client.recv_msg(DEADLINE)
        assert (msg.content, msg.send_type) == (b"news", TO_ALL)


@pytest.mark.local
def test_to_one_goes_to_the_shortest_queue(make_socket: Make, address: str) -> None:
    server = make_socket()
    server.listen(address)
    clients = [make_socket() for _ in range(3)]
    for client in clients:
        client.dial(address)
    wait_until(lambda: len(server.pipes) == 3, "all are connected")
    for _ in range(9):
        server.send(b"turn")
    assert [client.stats()["depth"] for client in clients] == [3, 3, 3]
    for _ in range(3):
        clients[1].recv(0)
    for _ in range(3):
        server.send(b"there")
    assert [client.stats()["depth"] for client in clients] == [3, 3, 3]


@pytest.mark.local
def test_to_one_leaves_out_who_is_full_or_discards(make_socket: Make, address: str) -> None:
    server = make_socket(send_timeout=0.0)
    server.listen(address)
    small, large, deaf = (
        make_socket(recv_queue_size=1), make_socket(recv_queue_size=5), make_socket(no_recv=True)
    )  # fmt: skip
    for client in (small, large, deaf):
        client.dial(address)
    wait_until(lambda: len(server.pipes) == 3, "all are connected")
    for _ in range(6):
        server.send(b"x")
    with pytest.raises(ms.Timeout, match="no peer had room"):
        server.send(b"x")
    assert (small.stats()["depth"], large.stats()["depth"]) == (1, 5)
    large.recv()
    server.send(b"y")
    server.send_all(b"z", timeout=0) if large.recv() and small.recv() else None
    with pytest.raises(ms.NotSupported, match="no_recv"):
        deaf.recv()


def test_many(pair: Pair) -> None:
    server, client = pair
    contents = [b"%d" % i * (i % 7) for i in range(1000)] + [bytes(50_000), b"last"]
    assert client.send_many(iter(contents)) == len(contents)
    got = server.recv_many(100, DEADLINE)
    assert 0 < len(got) <= 100
    while len(got) < len(contents):
        got += server.recv_many(2000, DEADLINE)
    assert got == contents
    assert client.send_many([]) == 0
    with pytest.raises(ms.Timeout):
        server.recv_many(5, timeout=0)
    with pytest.raises(ms.BadOption):
        server.recv_many(0)


@pytest.mark.local
def test_many_are_shared_out(make_socket: Make, address: str) -> None:
    server = make_socket()
    server.listen(address)
    clients = [make_socket() for _ in range(4)]
    for client in clients:
        client.dial(address)
    wait_until(lambda: len(server.pipes) == 4, "all are connected")
    server.send_many([b"x"] * 400)
    assert [client.stats()["depth"] for client in clients] == [100] * 4


@pytest.mark.local
def test_many_that_do_not_fit(make_socket: Make, address: str) -> None:
    server, client = make_socket(recv_queue_size=10), make_socket()
    server.listen(address)
    client.dial(address)
    with pytest.raises(ms.Timeout) as raised:
        client.send_many([b"%d" % i for i in range(100)], timeout=0.02)
    assert raised.value.sent == 10
    assert server.recv_many(100) == [b"%d" % i for i in range(10)]


def test_objects(pair: Pair) -> None:
    obj = {"a": [1, 2.5, None], 7: b"raw", "t": "text"}
    pair[1].send_obj(obj)
    assert pair[0].recv_obj(DEADLINE) == obj
    with pytest.raises(ms.BadMessage, match="msgpack cannot serialize a object"):
        pair[1].send_obj(object())
    pair[1].send(b"\xc1")
    with pytest.raises(ms.BadMessage, match="content of 1 bytes cannot be read"):
        pair[0].recv_obj(DEADLINE)


def test_iterating_ends_with_the_socket(pair: Pair, threads: Callable[..., object]) -> None:
    got: list[bytes] = []
    threads(lambda: got.extend(msg.content for msg in pair[0]))
    pair[1].send_many([b"1", b"2"])
    wait_until(lambda: len(got) == 2, "both came")
    pair[0].close()


def test_forwarding_keeps_the_way_back(make_socket: Make, folder: object) -> None:
    """client - node - server: the node forwards, the answer finds the client along the path."""
    client, node_front, node_back, server = (make_socket() for _ in range(4))
    node_front.listen(f"ipc://{folder}/front")
    client.dial(f"ipc://{folder}/front")
    server.listen(f"ipc://{folder}/back")
    node_front.dial(f"ipc://{folder}/back")
    client.send(b"question")
    msg = node_front.recv_msg(DEADLINE)
    assert msg.ttl == 15
    back = next(pipe for pipe in node_front.pipes if pipe.dialed)
    node_front.close_pipe(msg.pipe_id + 99) if False else None
    node_front.send_msg(
        ms.Message(msg.content, send_type=TO_DESTINATION, destination=(back.id,), source=msg.source, ttl=msg.ttl)
    )
    request = server.recv_msg(DEADLINE)
    assert (request.source, request.ttl, request.destination) == ((1, *msg.source), 14, ())
    server.send_to(request.source, b"answer")
    passing = node_front.recv_msg(DEADLINE)
    assert passing.destination == msg.source
    node_front.send_msg(passing)
    answer = client.recv_msg(DEADLINE)
    assert (answer.content, answer.destination, answer.hops) == (b"answer", (), 2)
    node_back.close()


def test_flags_travel(pair: Pair) -> None:
    pair[1].send_msg(ms.Message(b"c", flags=CONTROL, send_type=TO_ALL))
    msg = pair[0].recv_msg(DEADLINE)
    assert (msg.flags, msg.send_type) == (CONTROL | TO_ALL, TO_ALL)
    pair[1].send_msg(ms.Message(b"c", flags=NO_SOURCE, source=(5,)))
    assert pair[0].recv_msg(DEADLINE).source == (5,)


def test_ttl_is_used_up(pair: Pair) -> None:
    pair[1].send_msg(ms.Message(b"last step", ttl=1))
    msg = pair[0].recv_msg(DEADLINE)
    assert msg.ttl == 0
    with pytest.raises(ms.MessageDropped, match="ttl"):
        pair[0].send_msg(msg)


def test_send_ttl_option(make_socket: Make, address: str) -> None:
    server, client = connected(make_socket, address, send_ttl=3)
    client.send(b"x")
    assert server.recv_msg(DEADLINE).ttl == 2


def test_broken_paths(pair: Pair) -> None:
    server, client = pair
    client.send(b"x")
    source = server.recv_msg(DEADLINE).source
    for path in [(77,), (0,), (source[0] + 65536,)]:
        with pytest.raises(ms.BrokenPath, match="gone, or never was"):
            server.send_to(path, b"x")
    with pytest.raises(ms.BrokenPath, match="empty"):
        server.send_to((), b"x")
    with pytest.raises(ms.BadMessage):
        server.send_to(["a"], b"x")  # type: ignore[list-item]
    with pytest.raises(ms.BrokenPath, match="arrived"):
        server.send_msg(ms.Message(b"x", send_type=TO_DESTINATION))
    client.close()
    wait_until(lambda: not server.pipes, "the pipe is gone")
    with pytest.raises(ms.BrokenPath):
        server.send_to(source, b"too late")


@pytest.mark.local
def test_best_effort_drops(make_socket: Make, address: str) -> None:
    server, client = make_socket(recv_queue_size=2), make_socket(send_best_effort=True)
    server.listen(address)
    client.dial(address)
    client.send(b"1")
    client.send(b"2")
    with pytest.raises(ms.MessageDropped, match="best effort"):
        client.send(b"3")
    assert client.send_all(b"4") == 0
    assert client.stats()["dropped"] == 2
    assert server.recv_many(9) == [b"1", b"2"]


@pytest.mark.local
def test_send_all_waits_for_the_slow_and_tells_who_got_it(make_socket: Make, address: str) -> None:
    server = make_socket()
    server.listen(address)
    fast, slow = make_socket(), make_socket(recv_queue_size=1)
    fast.dial(address)
    slow.dial(address)
    wait_until(lambda: len(server.pipes) == 2, "both are connected")
    server.send_all(b"1")
    with pytest.raises(ms.Timeout) as raised:
        server.send_all(b"2", timeout=0.02)
    assert raised.value.sent == 1
    assert (fast.recv_many(9), slow.recv_many(9)) == ([b"1", b"2"], [b"1"])


@pytest.mark.local
def test_too_long_names_both_sizes(make_socket: Make, address: str) -> None:
    server, client = make_socket(recv_queue_bytes=65536), make_socket(recv_queue_bytes=65536, arena_limit=0)
    for _ in range(2):  # not connected: what is kept has a limit too
        with pytest.raises(ms.ContentTooLong, match=r"65521 bytes.* 65520"):
            client.send(bytes(65521))
        server.listen(address) if not server.pipes else None
        client.dial(address) if not client.pipes else None
    client.send(bytes(65520))
    assert len(server.recv(DEADLINE)) == 65520
    with pytest.raises(ms.ContentTooLong):
        client.send_all(bytes(70000))
    with pytest.raises(ms.ContentTooLong):
        client.send_many([b"fits", bytes(70000)])
    assert server.recv(DEADLINE) == b"fits"


@pytest.mark.local
def test_longer_than_the_receiver_wants(make_socket: Make, address: str) -> None:
    server, client = make_socket(max_recv_content_length=1000), make_socket()
    server.listen(address)
    client.dial(address)
    for send in (client.send, client.send_all, lambda content: client.send_many([content])):
        for size in (1001, 200_000, 5 << 20):
            with pytest.raises(ms.ContentTooLong, match=rf"{size} bytes.* 1000; .*max_recv_content_length"):
                send(bytes(size))
    client.send(bytes(1000))
    assert server.recv(DEADLINE) == bytes(1000)
    assert client.stats()["arena_used"] == 0


@pytest.mark.parametrize("bad", [-1, float("nan"), "soon", object()])
def test_bad_timeouts(pair: Pair, bad: object) -> None:
    with pytest.raises(ms.BadOption, match="timeout"):
        pair[0].recv(timeout=bad)  # type: ignore[arg-type]


def test_timeouts(make_socket: Make) -> None:
    sock = make_socket(recv_timeout=0.01, send_timeout=0.01, send_queue_size=1)
    with pytest.raises(ms.Timeout, match="no message"):
        sock.recv()
    with pytest.raises(TimeoutError):
        sock.recv(timeout=0)
    sock.send(b"kept")
    with pytest.raises(ms.Timeout, match="no peer was connected"):
        sock.send(b"too many")


def test_refusing(make_socket: Make) -> None:
    sender, receiver = make_socket(no_recv=True), make_socket(no_send=True)
    for call in (sender.recv, sender.recv_msg, lambda: sender.recv_many(5)):
        with pytest.raises(ms.NotSupported, match="only sends"):
            call()
    for send in (lambda: receiver.send(b""), lambda: receiver.send_many([b""])):
        with pytest.raises(ms.NotSupported, match="only receives"):
            send()


@given(st.lists(st.binary(max_size=3000), max_size=60))
@settings(max_examples=25, deadline=None)
def test_order_and_content(contents: list[bytes]) -> None:
    with ms.Socket() as server, ms.Socket() as client:
        server.listen(f"inproc://order-{os.getpid()}")
        client.dial(f"inproc://order-{os.getpid()}")
        for content in contents:
            client.send(content)
        assert [server.recv(0) for _ in contents] == contents


def test_stats(pair: Pair) -> None:
    server, client = pair
    client.send_many([b"x"] * 10)
    server.recv()
    assert client.stats()["sent"] == 10
    stats = server.stats()
    assert (stats["received"], stats["depth"], stats["used"]) == (1, 9, 9 * 32)
    assert Counter(stats)["pending"] == 0


@pytest.mark.local
def test_to_all_although_one_takes_only_short_contents(make_socket: Make, address: str) -> None:
    server, short, other = make_socket(), make_socket(max_recv_content_length=100), make_socket()
    server.listen(address)
    for client in (short, other):
        client.dial(address)
    with pytest.raises(ms.ContentTooLong):
        server.send_all(b"x" * 1000)
    assert other.recv(DEADLINE) == b"x" * 1000
    assert server.send_all(b"y") == 2
    assert short.recv(DEADLINE) == b"y"
