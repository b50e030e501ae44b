"""Switches."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, free_port, wait_until
from multisocket import shm
from multisocket.protocol import Bus, Pull, Push, Rep, Req, Respondent, Surveyor, Switch, switch

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


@pytest.mark.parametrize("which", [0, 1])
def test_it_ends_with_either_socket(address: str, folder: Path, which: int) -> None:
    with running(address, f"ipc://{folder}/back") as one:
        assert not one.join(0)
        one._ways[0][which].close()
        assert one.join(DEADLINE)
        assert not one._ways[0][1 - which].closed


def test_closing_it_ends_who_waits(address: str, folder: Path, threads: Start) -> None:
    with running(address, f"ipc://{folder}/back") as one:
        joined: list[bool] = []
        waiting = [threads(lambda: joined.append(one.join(DEADLINE))) for _ in range(3)]
        one.close()
        one.close()
        for thread in waiting:
            thread.join(DEADLINE)
        assert joined == [True] * 3
        assert all(sock.closed for sock in one._ways[0])


def test_its_middleware_may_close_it(address: str, folder: Path) -> None:
    def middleware(msg: ms.Message, origin: ms.Socket) -> None:
        one.close()

    with running(address, f"ipc://{folder}/back", middleware) as one, ms.Socket(send_stop_timeout=0) as sender:
        sender.dial(address)
        sender.send(b"x")
        assert one.join(DEADLINE)


def test_sockets_of_one_direction(address: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A switch in a pipeline; nothing comes the other way, and nothing is tried in vain."""
    back = f"ipc://{folder}/back"
    with Pull() as front, Push() as far, Push() as source, Pull() as target:
        front.listen(address)
        far.listen(back)
        source.dial(address)
        target.dial(back)
        with switch(front, far) as one:
            source.send_many([b"%d" % i for i in range(100)])
            assert [target.recv(DEADLINE) for _ in range(100)] == [b"%d" % i for i in range(100)]
            wait_until(lambda: one.forwarded == 100, "all are counted")
        assert front.socket.closed
        assert far.socket.closed
    assert not caplog.records
    with Push() as one_push, Push() as other_push, pytest.raises(ms.BadOption, match="receives"):
        switch(one_push, other_push)


def test_a_target_that_does_not_send(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """What comes for it is dropped, and counted."""
    with ms.Socket() as front, Pull() as back, ms.Socket() as source, switch(front, back) as one:
        front.listen(address)
        source.dial(address)
        source.send_many([b"x"] * 5)
        wait_until(lambda: one.dropped == 5, "all are dropped")
    assert not caplog.records


def test_a_question_that_comes_back_is_no_answer(address: str) -> None:
    """A switch among its own peers may give it to who has asked."""
    hub = ms.Socket(send_stop_timeout=0)
    with switch(hub, hub), Req() as req, Surveyor() as surveyor, Respondent(lambda content: b"answer") as respondent:
        hub.listen(address)
        req.dial(address)
        with pytest.raises(ms.Timeout):
            req.request(b"x", 0.1)
        req.close()
        surveyor.dial(address)
        respondent.dial(address)
        respondent.start()
        wait_until(lambda: len(hub.pipes) == 2, "both are connected")
        assert next(surveyor.survey(b"question", DEADLINE)) == b"answer"


def _die_of_the_first(address: str, mark: str) -> None:
    def handler(content: bytes) -> bytes:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return content * 2
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with Rep(handler) as rep:
        rep.dial(address, dial_async=True)
        rep.serve()


@pytest.mark.parametrize("method", START_METHODS)
def test_resent_through_a_switch(address: str, folder: Path, processes: Processes, method: str) -> None:
    """Who has asked does not see that the worker behind it dies; its time passes."""
    back = f"ipc://{folder}/back"
    with running(address, back) as one, Req(resend=0.3) as req:
        for _ in range(2):
            processes.start(_die_of_the_first, back, str(folder / "mark"), method=method)
        wait_until(lambda: len(one._ways[0][1].pipes) == 2, "both are connected")
        req.dial(address)
        assert req.request(b"x", DEADLINE) == b"xx"
        assert (folder / "mark").exists()


def test_options_of_a_switch() -> None:
    with pytest.raises(ms.BadOption, match="two Sockets"):
        switch("front", "back")  # type: ignore[arg-type]


def _lazy(address: str, connected: Any) -> None:
    with Req() as req:
        req.dial(address)
        futures = [req.request_async(b"%d" % i) for i in range(1000)]
        connected.set()
        wait(futures, 0.1)
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
