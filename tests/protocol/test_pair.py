"""Pair."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, until_full, wait_until
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


@pytest.mark.parametrize("listens", [True, False])
def test_what_was_sent_before_comes_in_order(address: str, listens: bool) -> None:
    with Pair(send_queue_size=3) as one, Pair() as other:
        assert until_full(lambda i: one.send(b"%d" % i, 0.01)) == 3
        for pair in (one, other) if listens else (other, one):
            (pair.listen if pair is (one if listens else other) else pair.dial)(address)
        assert [other.recv(DEADLINE) for _ in range(3)] == [b"0", b"1", b"2"]
        one.send(b"3", DEADLINE)
        assert other.recv(DEADLINE) == b"3"


def test_many_at_a_time_and_both_ways_at_once(address: str, threads: Callable[..., threading.Thread]) -> None:
    with Pair() as one, Pair() as other:
        one.listen(address)
        other.dial(address)
        contents = [b"%d" % i for i in range(5000)]
        got: dict[str, list[bytes]] = {"one": [], "other": []}

        def receive(name: str, pair: Pair) -> None:
            while len(got[name]) < len(contents):
                got[name] += pair.recv_many(100, DEADLINE)

        running = [threads(receive, "one", one), threads(receive, "other", other)]
        running += [threads(pair.send_many, contents, DEADLINE) for pair in (one, other)]
        for thread in running:
            thread.join(DEADLINE)
        assert got == {"one": contents, "other": contents}


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


@pytest.mark.local
def test_one_that_has_a_peer_by_dialing_lets_nobody_in(address: str, folder: Path) -> None:
    with Pair() as one, Pair() as other, Pair() as third:
        one.listen(address)
        other.dial(address)
        other.listen(f"ipc://{folder}/other")
        with pytest.raises(ms.ConnectionRefused):
            third.dial(f"ipc://{folder}/other")
        other.send(b"x")
        assert one.recv(DEADLINE) == b"x"


@pytest.mark.local
def test_of_many_that_dial_at_once_one_is_let_in(address: str, threads: Callable[..., threading.Thread]) -> None:
    for _ in range(10):
        with Pair() as one, contextlib.ExitStack() as stack:
            one.listen(address)
            pairs = [stack.enter_context(Pair()) for _ in range(8)]
            came: list[int] = []

            def dial(i: int, pairs: list[Pair] = pairs, came: list[int] = came) -> None:
                with contextlib.suppress(ms.ConnectionRefused):
                    pairs[i].dial(address, reconnect=False)
                    came.append(i)

            for thread in [threads(dial, i) for i in range(8)]:
                thread.join(DEADLINE)
            assert len(came) == 1
            assert len(one.socket.pipes) == 1
            one.send(b"x")
            assert pairs[came[0]].recv(DEADLINE) == b"x"


def test_who_keeps_dialing_comes_when_the_first_is_gone(address: str) -> None:
    with Pair() as one, Pair() as third:
        one.listen(address)
        with Pair() as other:
            other.dial(address)
            other.send(b"x")
            assert one.recv(DEADLINE) == b"x"
            third.dial(address, dial_async=True, min_reconnect_time=0.01, max_reconnect_time=0.02)
            one.send(b"y")
            assert other.recv(DEADLINE) == b"y"
        wait_until(lambda: third.socket.pipes and one.socket.pipes, "the next came by itself")
        third.send(b"z")
        assert one.recv(DEADLINE) == b"z"


def _take(address: str, ready: Any) -> None:
    with Pair() as pair:
        pair.dial(address)
        pair.send(b"hello")
        ready.set()
        for _ in pair:
            pass


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_the_next_may_come_when_the_first_is_killed(folder: Path, processes: Processes, scheme: str) -> None:
    with Pair() as one:
        address = one.listen(f"ipc://{folder}/s" if scheme == "ipc" else "tcp://127.0.0.1:0").address
        for _ in range(3):
            ready = multiprocessing.get_context("fork").Event()
            process = processes.start(_take, address, ready)
            assert ready.wait(DEADLINE)
            assert one.recv(DEADLINE) == b"hello"
            process.kill()
            wait_until(lambda: not one.socket.pipes, "it is gone")


@pytest.mark.local
def test_what_the_first_did_not_take_goes_to_the_next(address: str) -> None:
    with Pair() as one, Pair() as third:
        one.listen(address)
        with Pair() as other:
            other.dial(address)
            one.send_many([b"taken", b"not taken"])
            assert other.recv(DEADLINE) == b"taken"
        third.dial(address, dial_async=True, min_reconnect_time=0.01)
        assert third.recv(DEADLINE) == b"not taken"


def _echo(pair: Pair) -> None:
    for content in pair:
        if not content:
            return
        pair.send(content * 2, DEADLINE)


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_share_an_end(address: str, processes: Processes, method: str) -> None:
    with Pair() as one, Pair() as other:
        one.listen(address)
        other.dial(address)
        workers = [processes.start(_echo, one, method=method) for _ in range(2)]
        other.send_many([b"%d." % i for i in range(100)], DEADLINE)
        assert {other.recv(DEADLINE) for _ in range(100)} == {b"%d.%d." % (i, i) for i in range(100)}
        other.send_many([b"", b""], DEADLINE)
        processes.join(*workers)


def test_how_many_peers_is_no_option_of_it() -> None:
    with pytest.raises(ms.BadOption, match="pipe_limit"):
        Pair(pipe_limit=2)


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
