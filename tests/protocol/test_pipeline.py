"""Push and Pull."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, wait_until
from multisocket.protocol import Pull, Push


@pytest.mark.parametrize("binder", ["push", "pull"])
def test_either_end_may_listen(address: str, binder: str) -> None:
    with Push() as push, Pull() as pull:
        ends = (push, pull) if binder == "push" else (pull, push)
        ends[0].listen(address)
        ends[1].connect(f"{address}#dial")
        push.send(b"one")
        push.send_many([b"two", b"three"])
        push.send_obj(["four"])
        assert pull.recv(DEADLINE) == b"one"
        assert pull.recv_many(2, DEADLINE) == [b"two", b"three"]
        assert pull.recv_obj(DEADLINE) == ["four"]


def test_each_message_goes_to_one(address: str) -> None:
    with Push() as push, Pull() as first, Pull() as second:
        push.listen(address)
        first.dial(address)
        second.dial(address)
        wait_until(lambda: len(push.socket.pipes) == 2, "both are connected")
        push.send_many([b"%d" % i for i in range(10)])
        got = first.recv_many(10) + second.recv_many(10)
        assert sorted(got) == [b"%d" % i for i in range(10)]


def test_one_direction_only(address: str) -> None:
    with Push() as push, Pull() as pull:
        with pytest.raises(ms.NotSupported):
            push.socket.recv()
        with pytest.raises(ms.NotSupported):
            pull.socket.send(b"x")


def test_iterating_ends_with_close(address: str, threads: Callable[..., object]) -> None:
    with Push() as push, Pull() as pull:
        pull.listen(address)
        push.dial(address)
        got: list[bytes] = []
        threads(lambda: got.extend(pull))
        push.send(b"one")
        wait_until(lambda: got == [b"one"], "it came")
        pull.close()


def _double(jobs: Pull, results: Push) -> None:
    for content in jobs:
        if not content:
            return
        results.send(content * 2)


@pytest.mark.parametrize("method", START_METHODS)
def test_fan_out_and_in(address: str, folder: object, processes: Processes, method: str) -> None:
    with Push() as out, Pull() as jobs, Push() as back, Pull() as results:
        jobs.listen(address)
        out.dial(address)
        results.listen(f"ipc://{folder}/results")
        back.dial(f"ipc://{folder}/results")
        workers = [processes.start(_double, jobs, back, method=method) for _ in range(3)]
        out.send_many([b"%d." % i for i in range(300)])
        got = {results.recv(DEADLINE) for _ in range(300)}
        assert got == {b"%d.%d." % (i, i) for i in range(300)}
        out.send_many([b""] * 3)
        processes.join(*workers)
