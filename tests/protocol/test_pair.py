"""Pair."""

from __future__ import annotations

import pickle

import pytest

import multisocket as ms
from conftest import DEADLINE, wait_until
from multisocket.protocol import Pair


def test_both_directions(address: str) -> None:
    with Pair() as one, Pair() as other:
        one.listen(address)
        other.dial(address)
        other.send(b"question")
        assert one.recv(DEADLINE) == b"question"
        one.send_many([b"a", b"b"])
        assert [other.recv(DEADLINE), other.recv(DEADLINE)] == [b"a", b"b"]
        one.send_obj([1])
        assert other.recv_obj(DEADLINE) == [1]
        other.send(b"last")
        for content in one:
            assert content == b"last"
            break


def test_what_was_sent_before_is_kept(address: str) -> None:
    with Pair() as one, Pair() as other:
        one.send(b"early")
        one.listen(address)
        other.dial(address)
        assert other.recv(DEADLINE) == b"early"


@pytest.mark.local
def test_a_third_is_refused(address: str) -> None:
    with Pair() as one, Pair() as other, Pair() as third:
        one.listen(address)
        other.dial(address)
        with pytest.raises(ms.ConnectionRefused):
            third.dial(address)
        one.send(b"x")
        assert other.recv(DEADLINE) == b"x"


def test_a_third_is_refused_over_a_network() -> None:
    with Pair() as one, Pair() as other, Pair() as third:
        address = one.listen("tcp://127.0.0.1:0").address
        other.dial(address)
        wait_until(lambda: one.socket.pipes, "they are a pair")
        third.dial(address, reconnect=False)
        wait_until(lambda: not third.socket.pipes, "it is sent away")
        assert len(one.socket.pipes) == 1
        one.send(b"x")
        assert other.recv(DEADLINE) == b"x"


def test_one_that_has_a_peer_dials_no_other(address: str, folder: object) -> None:
    with Pair() as one, Pair() as other, Pair() as third:
        one.listen(address)
        other.dial(address)
        third.listen(f"ipc://{folder}/third")
        with pytest.raises(ms.ConnectionRefused, match="pipe_limit"):
            other.dial(f"ipc://{folder}/third")


def test_the_next_may_come_when_the_first_is_gone(address: str) -> None:
    with Pair() as one, Pair() as third:
        one.listen(address)
        with Pair() as other:
            other.dial(address)
            other.send(b"x")
            assert one.recv(DEADLINE) == b"x"
        wait_until(lambda: not one.socket.pipes, "it is gone")
        third.dial(address)
        third.send(b"y")
        assert one.recv(DEADLINE) == b"y"
        one.send(b"z")
        assert third.recv(DEADLINE) == b"z"


def test_it_goes_to_other_processes() -> None:
    with Pair() as one:
        with pickle.loads(pickle.dumps(one)) as copy:
            assert isinstance(copy, Pair)
        assert not one.socket.closed
