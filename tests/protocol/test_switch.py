"""Switches."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, Processes, free_port, wait_until
from multisocket import shm
from multisocket.protocol import Bus, Rep, Req, Switch, switch

Start = Callable[..., threading.Thread]


@contextmanager
def running(front: str, back: str, middleware: Any = None, **options: Any) -> Iterator[Switch]:
    """A switch that listens at both addresses."""
    near, far = ms.Socket(send_stop_timeout=0, **options), ms.Socket(send_stop_timeout=0)
    near.listen(front)
    far.listen(back)
    with switch(near, far, middleware) as one:
        yield one


def addresses(folder: Path) -> Iterator[str]:
    for number in range(10):
        yield f"ipc://{folder}/{number}"
        yield f"inproc://{folder.name}-{number}"
        yield f"tcp://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_chains(folder: Path, length: int) -> None:
    fresh = addresses(folder)
    with contextlib.ExitStack() as stack, Rep(lambda content: content[::-1]) as rep, Req() as req:
        front = back = next(fresh)
        rep.listen(back)
        rep.start()
        for _ in range(length):
            front = next(fresh)
            near, far = ms.Socket(send_stop_timeout=0), ms.Socket(send_stop_timeout=0)
            near.listen(front)
            far.dial(back)
            stack.enter_context(switch(near, far))
            back = front
        req.dial(front)
        assert [req.request(b"%03d" % i, DEADLINE) for i in range(50)] == [(b"%03d" % i)[::-1] for i in range(50)]
        assert req.request(b"xy" * (1 << 20), DEADLINE) == b"yx" * (1 << 20)


def _serve(address: str) -> None:
    with Rep(lambda content: b"%d" % os.getpid()) as rep:
        rep.dial(address)
        rep.serve()


def test_one_front_is_spread_over_many_processes(folder: Path, processes: Processes) -> None:
    with running(f"tcp://127.0.0.1:{(port := free_port())}", f"ipc://{folder}/back") as one, Req() as req:
        workers = [processes.start(_serve, f"ipc://{folder}/back") for _ in range(3)]
        req.dial(f"tcp://127.0.0.1:{port}")
        seen: set[bytes] = set()
        while len(seen) < 3:
            seen |= {future.result(DEADLINE) for future in [req.request_async(b"") for _ in range(60)]}
        assert seen == {b"%d" % worker.pid for worker in workers}
        workers[0].kill()
        left = {future.result(DEADLINE) for future in [req.request_async(b"") for _ in range(60)] if future}
        assert left
        wait_until(lambda: one.forwarded >= 240, "all are counted")


def test_middleware(address: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def middleware(msg: ms.Message, origin: ms.Socket) -> ms.Message | None:
        head, content = bytes(msg.content[:4]), bytes(msg.content[4:])
        if content == b"drop":
            return None
        if content == b"raise":
            raise ValueError("as asked")
        came.add(origin)
        return msg.with_content(head + content.upper())

    came: set[ms.Socket] = set()
    with (
        running(address, f"ipc://{folder}/back", middleware) as one,
        Rep(lambda content: content + b" reply") as rep,
        Req() as req,
    ):
        rep.dial(f"ipc://{folder}/back")
        rep.start()
        req.dial(address)
        assert req.request(b"shout", DEADLINE) == b"SHOUT REPLY"
        assert len(came) == 2
        for content in (b"drop", b"raise"):
            future = req.request_async(content)
            wait_until(lambda: one.dropped, "it is dropped")
            assert not future.done()
        assert req.request(b"goes on", DEADLINE) == b"GOES ON REPLY"
        wait_until(lambda: one.dropped == 2, "both are counted")
        wait_until(lambda: one.forwarded == 4, "so is what was passed on")
        assert "as asked" in caplog.text


def test_what_goes_in_circles_ends(folder: Path) -> None:
    """Two switches in a ring: what is for all goes round until its ttl is used up."""
    names = [f"inproc://{folder.name}-{i}" for i in range(2)]
    sockets = [ms.Socket(send_stop_timeout=0) for _ in range(4)]
    with contextlib.ExitStack() as stack:
        for i in range(2):
            sockets[2 * i].listen(names[i])
        sockets[1].dial(names[1])
        sockets[3].dial(names[0])
        switches = [stack.enter_context(switch(sockets[2 * i], sockets[2 * i + 1])) for i in range(2)]
        source = stack.enter_context(ms.Socket(send_ttl=10))
        source.dial(names[0])
        source.send_all(b"round")
        wait_until(lambda: sum(one.dropped for one in switches) >= 1, "it ends")
        before = sum(one.forwarded for one in switches)
        source.send_all(b"round")
        wait_until(lambda: sum(one.dropped for one in switches) >= 2, "it ends again")
        assert before <= sum(one.forwarded for one in switches) <= 1000


def test_front_is_back(address: str) -> None:
    """It passes on among its own peers: also back to who sent, as no bus does."""
    hub = ms.Socket(send_stop_timeout=0)
    with switch(hub, hub), ms.Socket(send_ttl=3) as one, Bus() as other:
        hub.listen(address)
        one.dial(address)
        other.dial(address)
        wait_until(lambda: len(hub.pipes) == 2, "both are connected")
        one.send_all(b"x")
        assert other.recv(DEADLINE) == b"x"
        assert one.recv(DEADLINE) == b"x"


@pytest.mark.local
def test_large_contents_are_not_copied(folder: Path) -> None:
    with (
        running(f"ipc://{folder}/front", f"inproc://{folder.name}") as one,
        ms.Socket() as sender,
        ms.Socket() as receiver,
    ):
        sender.dial(f"ipc://{folder}/front")
        receiver.dial(f"inproc://{folder.name}")
        with sender.loan(8 << 20) as loan:
            loan.buffer[:5] = b"large"
            before = shm.copied_bytes()
            loan.send()
        with receiver.recv_msg(DEADLINE, copy=False) as msg:
            assert bytes(msg.content[:5]) == b"large"
            assert msg.hops == 2
            assert shm.copied_bytes() == before
        wait_until(lambda: one.forwarded == 1, "it is counted")
        wait_until(lambda: sender.stats()["arena_used"] == 0, "the memory is given back")


def test_a_requester_that_is_gone_does_no_harm(address: str, folder: Path) -> None:
    with running(address, f"ipc://{folder}/back") as one, Rep() as rep, Req() as req:
        rep.dial(f"ipc://{folder}/back")
        with Req() as leaving:
            leaving.dial(address)
            leaving.request_async(b"x")
            request = rep.recv(DEADLINE)
        wait_until(lambda: not one._ways[0][0].pipes, "it is gone")
        request.reply(b"to nobody")
        wait_until(lambda: one.dropped == 1, "the reply is dropped")
        req.dial(address)
        future = req.request_async(b"y")
        rep.recv(DEADLINE).reply(b"z")
        assert future.result(DEADLINE) == b"z"


def test_it_ends_with_either_socket(address: str, folder: Path) -> None:
    with running(address, f"ipc://{folder}/back") as one:
        assert not one.join(0)
        one._ways[0][0].close()
        one._ways[0][1].close()
        assert one.join(DEADLINE)
    with pytest.raises(ms.BadOption, match="two Sockets"):
        switch("front", "back")  # type: ignore[arg-type]


def _lazy(address: str, connected: Any) -> None:
    with Req() as req:
        req.dial(address)
        futures = [req.request_async(b"%d" % i) for i in range(1000)]
        connected.set()
        for future in futures:
            with contextlib.suppress(TimeoutError):
                future.result(0.01)
        req.request(b"awake again", DEADLINE)


def test_a_hundred_peers_and_one_is_stopped(folder: Path, processes: Processes) -> None:
    """It does not take its replies, which fill its queue; the others get theirs all the same."""
    front, back = f"ipc://{folder}/front", f"inproc://{folder.name}"
    connected = multiprocessing.get_context("fork").Event()
    with (
        running(front, back, send_best_effort=True) as one,
        Rep(lambda content: content * 20000) as rep,
        contextlib.ExitStack() as stack,
    ):
        rep.dial(back)
        lazy = processes.start(_lazy, front, connected)
        assert connected.wait(DEADLINE)
        os.kill(lazy.pid, signal.SIGSTOP)
        rep.start()
        others = [stack.enter_context(Req()) for _ in range(99)]
        for req in others:
            req.dial(front)
        for _ in range(3):
            for future in [req.request_async(b"x") for req in others]:
                assert future.result(DEADLINE) == b"x" * 20000
        os.kill(lazy.pid, signal.SIGCONT)
        processes.join(lazy)
        wait_until(lambda: one.forwarded > 600, "all are counted")
