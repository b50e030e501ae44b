"""Requests and replies."""

from __future__ import annotations

import gc
import math
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy
import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, wait_until
from multisocket.message import CONTROL, TO_DESTINATION
from multisocket.protocol import Rep, Req, Request

Start = Callable[..., threading.Thread]


@contextmanager
def connected(address: str, handler: Any = None, **options: Any) -> Iterator[tuple[Rep, Req]]:
    with Rep(handler, send_stop_timeout=0) as rep, Req(send_stop_timeout=0, **options) as req:
        rep.listen(address)
        req.dial(address)
        if handler is not None:
            rep.start()
        yield rep, req


def double(content: bytes) -> bytes:
    return content * 2


@pytest.mark.parametrize(
    "content",
    [b"bytes", bytearray(b"array"), memoryview(b"view"), b"", numpy.arange(5), b"x" * (1 << 20), b"y" * (20 << 20)],
    ids=["bytes", "bytearray", "memoryview", "empty", "numpy", "1 MiB", "20 MiB"],
)
def test_a_request_gets_its_reply(address: str, content: Any) -> None:
    with connected(address, double) as (_, req):
        assert req.request(content, DEADLINE) == bytes(content) * 2


def test_by_hand(address: str, threads: Start) -> None:
    with connected(address) as (rep, req):

        def serve() -> None:
            for request in rep:
                request.reply(request.content[::-1])

        threads(serve)
        assert [req.request(b"%03d" % i, DEADLINE) for i in range(100)] == [(b"%03d" % i)[::-1] for i in range(100)]
        rep.close()


def test_either_side_may_listen(address: str) -> None:
    with Req() as req, Rep(double) as rep:
        req.listen(address)
        rep.connect(f"{address}#dial")
        rep.start()
        assert req.request(b"x", DEADLINE) == b"xx"


def test_every_thread_gets_its_own_reply(address: str, threads: Start) -> None:
    """Threads hand the receiving to each other all the time; one wake-up that is lost would be a timeout."""
    with connected(address, double) as (_, req):
        wrong: list[object] = []

        def ask(number: int) -> None:
            for i in range(500):
                content = b"%d.%d." % (number, i)
                try:
                    reply = req.request(content, DEADLINE)
                except ms.Error as error:
                    wrong.append(error)
                    return
                if reply != content * 2:
                    wrong.append(reply)

        def ask_async() -> None:
            for i in range(20):
                futures = [req.request_async(b"%d" % j) for j in range(i * 5)]
                wrong.extend(f for j, f in enumerate(futures) if f.result(DEADLINE) != b"%d" % j * 2)

        started = [threads(ask, number) for number in range(20)] + [threads(ask_async) for _ in range(2)]
        for thread in started:
            thread.join(2 * DEADLINE)
        assert not wrong
        assert not req._answers._askers
        assert not req._answers._waiting
        assert not req._answers._futures


def test_a_thousand_at_once(address: str) -> None:
    with connected(address, double) as (_, req):
        futures = [req.request_async(b"%d" % i) for i in range(1000)]
        assert [future.result(DEADLINE) for future in futures] == [b"%d" % i * 2 for i in range(1000)]
        done: list[bytes] = []
        future = req.request_async(b"x")
        future.add_done_callback(lambda future: done.append(future.result()))
        assert not wait([future], DEADLINE).not_done
        assert done == [b"xx"]


def test_a_cancelled_request_is_forgotten(address: str) -> None:
    with connected(address) as (rep, req):
        future = req.request_async(b"x")
        assert future.cancel()
        assert not req._answers._askers
        with pytest.raises(CancelledError):
            future.result(0)
        rep.recv(DEADLINE).reply(b"late")
        future = req.request_async(b"y")
        rep.recv(DEADLINE).reply(b"good")
        assert future.result(DEADLINE) == b"good"
        assert not future.cancel()


def test_a_late_reply_is_dropped(address: str) -> None:
    with connected(address) as (rep, req):
        with pytest.raises(ms.Timeout, match="no answer came"):
            req.request(b"slow", 0.01)
        rep.recv(DEADLINE).reply(b"late")
        future = req.request_async(b"next")
        rep.recv(DEADLINE).reply(b"right")
        assert future.result(DEADLINE) == b"right"
        assert not req._answers._askers


def test_what_a_handler_raises_is_the_requesters_error(address: str) -> None:
    def handler(content: bytes) -> Any:
        if content == b"raise":
            raise ValueError("as asked")
        return 7 if content == b"number" else content

    with connected(address, handler) as (_, req):
        with pytest.raises(ms.RemoteError, match="ValueError: as asked"):
            req.request(b"raise", DEADLINE)
        with pytest.raises(ms.RemoteError, match="TypeError"):
            req.request(b"number", DEADLINE)
        with pytest.raises(ms.RemoteError, match="as asked"):
            req.request_async(b"raise").result(DEADLINE)
        assert req.request(b"goes on", DEADLINE) == b"goes on"


def test_failing_by_hand(address: str) -> None:
    with connected(address) as (rep, req):
        for error in ("plain", KeyError("name")):
            future = req.request_async(b"x")
            rep.recv(DEADLINE).fail(error)
            with pytest.raises(ms.RemoteError, match=r"plain|KeyError: 'name'"):
                future.result(DEADLINE)


def test_a_requester_that_is_gone_does_no_harm(address: str) -> None:
    with connected(address, double) as (rep, req):
        with Rep() as by_hand, Req() as short:
            by_hand.listen("inproc://short-lived")
            short.dial("inproc://short-lived")
            short.request_async(b"x")
            request = by_hand.recv(DEADLINE)
            short.close()
            wait_until(lambda: not by_hand.socket.pipes, "it is gone")
            with pytest.raises(ms.BrokenPath):
                request.reply(b"y")
        with Req() as leaving:
            leaving.dial(address)
            for _ in range(100):
                leaving.request_async(b"x" * 1000)
        assert req.request(b"x", DEADLINE) == b"xx"
        assert rep.socket.stats()["depth"] == 0


def _pid(content: bytes) -> bytes:
    return b"%d" % os.getpid()


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_share_a_rep(address: str, processes: Processes, method: str) -> None:
    with Rep(_pid) as rep, Req() as req:
        rep.listen(address)
        req.dial(address)
        workers = [processes.start(rep.serve, method=method) for _ in range(2)]
        seen: set[bytes] = set()
        while len(seen) < 2:
            seen |= {future.result(DEADLINE) for future in [req.request_async(b"") for _ in range(100)]}
        assert seen == {b"%d" % worker.pid for worker in workers}
        rep.close()
        processes.join(*workers)


def test_workers_answer_at_the_same_time(address: str) -> None:
    barrier = threading.Barrier(3)

    def handler(content: bytes) -> bytes:
        barrier.wait(DEADLINE)
        return content

    with Rep(handler, workers=3) as rep, Req() as req:
        rep.listen(address)
        req.dial(address)
        rep.start()
        futures = [req.request_async(b"x") for _ in range(3)]
        assert [future.result(DEADLINE) for future in futures] == [b"x"] * 3


def test_threads_futures_and_errors_at_once(address: str, threads: Start) -> None:
    """Everything that hands the receiving on: replies, timeouts, cancelling, futures and callbacks that ask."""

    def handler(content: bytes) -> Any:
        if content.startswith(b"raise"):
            raise ValueError("as asked")
        return content * 2

    with connected(address, handler) as (_, req):
        wrong: list[object] = []

        def ask(number: int) -> None:
            for i in range(500):
                content = b"%d.%d." % (number, i)
                if i % 50 == 7:  # may come in time, or late
                    with suppress(ms.Timeout):
                        req.request(content, 0.0001)
                elif i % 50 == 8:
                    with suppress(ms.RemoteError):
                        wrong.append(req.request(b"raise" + content, DEADLINE))
                elif req.request(content, DEADLINE) != content * 2:
                    wrong.append(content)

        def ask_async(number: int) -> None:
            for i in range(100):
                content = b"%d/%d." % (number, i)
                futures = [req.request_async(content) for _ in range(10)]
                futures[i % 10].cancel()
                answered = [one for one in as_completed(futures, DEADLINE) if not one.cancelled()]
                wrong.extend(one for one in answered if one.result() != content * 2)

        def guarded(function: Callable[[int], None], number: int) -> None:
            try:
                function(number)
            except BaseException as error:
                wrong.append(error)

        started = [threads(guarded, ask, number) for number in range(20)]
        started += [threads(guarded, ask_async, number) for number in range(3)]
        for thread in started:
            thread.join(2 * DEADLINE)
        assert not wrong
        assert not any(thread.is_alive() for thread in started)
        assert not req._answers._askers
        assert not req._answers._waiting
        assert not req._answers._futures


def test_a_cancelled_future_is_done_for_those_who_wait(address: str, threads: Start) -> None:
    with connected(address) as (rep, req):
        future = req.request_async(b"x")
        done: list[object] = []
        waiting = [threads(lambda: done.append(wait([future], DEADLINE).done)) for _ in range(2)]
        cancelling = [threads(future.cancel) for _ in range(4)]
        for thread in [*waiting, *cancelling]:
            thread.join(DEADLINE)
        assert done == [{future}] * 2
        assert future.cancel()
        assert list(as_completed([future], 0)) == [future]
        rep.recv(DEADLINE).reply(b"late")


def test_a_callback_may_ask(address: str) -> None:
    """Although it runs in the thread that receives."""
    with connected(address, double) as (_, req):
        replies: list[bytes] = []
        done = threading.Event()

        def ask_again(future: Future[bytes]) -> None:
            reply = req.request(future.result(), DEADLINE)
            replies.extend([reply, req.request(reply, DEADLINE)])
            req.request_async(b"y").add_done_callback(lambda _: done.set())

        req.request_async(b"x").add_done_callback(ask_again)
        assert done.wait(DEADLINE)
        assert replies == [b"x" * 4, b"x" * 8]


def test_waiting_for_ever(address: str, threads: Start) -> None:
    """None, or endless seconds: also for those who do not receive themselves."""
    with connected(address) as (rep, req):
        replies: list[bytes] = []
        for timeout in (None, math.inf, 1e300, None, math.inf):
            threads(lambda timeout=timeout: replies.append(req.request(b"x", timeout)))
        for _ in range(5):
            rep.recv(DEADLINE).reply(b"y")
        wait_until(lambda: len(replies) == 5, "all have their reply")


class _NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_no_handler_ends_its_rep(address: str) -> None:
    """Whatever it raises, or gives."""

    def handler(content: bytes) -> Any:
        if content == b"no text":
            raise _NoText
        if content == b"closed":
            raise ms.Closed("something else")
        return {b"nothing": None, b"text": "x", b"gaps": memoryview(b"abcd")[::2]}.get(content, content)

    with connected(address, handler) as (_, req):
        for content, error in [
            (b"no text", "_NoText"),
            (b"closed", "Closed: something else"),
            (b"nothing", "TypeError"),
            (b"text", "TypeError"),
            (b"gaps", "TypeError"),
        ]:
            with pytest.raises(ms.RemoteError, match=error):
                req.request(content, DEADLINE)
        assert req.request(b"goes on", DEADLINE) == b"goes on"


@pytest.mark.local
def test_a_reply_that_is_too_long_is_the_requesters_error(address: str) -> None:
    with connected(address, lambda content: content * 100, max_recv_content_length=1000) as (_, req):
        with pytest.raises(ms.RemoteError, match="ContentTooLong"):
            req.request(b"x" * 100, DEADLINE)
        assert req.request(b"x", DEADLINE) == b"x" * 100


@pytest.mark.local
def test_a_request_that_is_too_long(address: str) -> None:
    with Rep(double, max_recv_content_length=100) as rep, Req() as req:
        rep.listen(address)
        req.dial(address)
        rep.start()
        for call in (req.request, req.request_async):
            with pytest.raises(ms.ContentTooLong):
                call(b"x" * 200)
        assert not req._answers._askers
        assert not req._answers._futures
        assert req.request(b"x", DEADLINE) == b"xx"


def test_a_handler_may_close_its_rep(address: str) -> None:
    def handler(content: bytes) -> bytes:
        rep.close()
        return content

    with Rep(handler, send_stop_timeout=0) as rep, Req() as req:
        rep.listen(address)
        req.dial(address)
        rep.start()
        with pytest.raises(ms.Timeout):
            req.request(b"x", 0.2)
        wait_until(lambda: rep.socket.closed, "it is closed")


# --- resend ---


def _die_of_the_first(content: bytes) -> bytes:
    if content == b"killer":
        mark = Path(os.environ["MARK"])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return b"survived"


def test_a_worker_that_is_killed_at_work(ipc: str, folder: Path, processes: Processes) -> None:
    """Its Rep lives on, so only time tells."""
    os.environ["MARK"] = str(folder / "mark")
    with Rep(_die_of_the_first) as rep, Req(resend=0.2) as req:
        rep.listen(ipc)
        req.dial(ipc)
        for _ in range(2):
            processes.start(rep.serve)
        assert req.request(b"killer", DEADLINE) == b"survived"
        assert (folder / "mark").exists()


def _hold(address: str) -> None:
    with Rep() as rep:
        rep.dial(address)
        for request in rep:
            assert isinstance(request, Request)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_sent_to_another_when_the_peer_dies(folder: Path, processes: Processes, scheme: str) -> None:
    with Req(resend=1000.0) as req, Rep(double) as other:
        address = req.listen(f"ipc://{folder}/s" if scheme == "ipc" else "tcp://127.0.0.1:0").address
        holder = processes.start(_hold, address)
        wait_until(lambda: req.socket.pipes, "the holder is connected")
        futures = [req.request_async(b"%d" % i) for i in range(10)]
        wait_until(lambda: req.socket.stats()["sent"] == 10, "it has them all")
        other.dial(address)
        other.start()
        wait_until(lambda: len(req.socket.pipes) == 2, "both are connected")
        assert not any(future.done() for future in futures)
        holder.kill()
        assert [future.result(DEADLINE) for future in futures] == [b"%d" % i * 2 for i in range(10)]
        assert not req._resender._requests  # type: ignore[union-attr]


def test_sent_to_another_when_the_peer_takes_too_long(address: str) -> None:
    with Req(resend=0.05) as req, Rep() as slow, Rep() as quick:
        req.listen(address)
        slow.dial(address)
        wait_until(lambda: len(req.socket.pipes) == 1, "the slow one is connected")
        future = req.request_async(b"x")
        first = slow.recv(DEADLINE)
        quick.dial(address)
        quick.recv(DEADLINE).reply(b"quick")
        assert future.result(DEADLINE) == b"quick"
        first.reply(b"slow")  # is dropped


def test_sent_again_to_the_only_one(address: str) -> None:
    with connected(address, resend=0.05) as (rep, req):
        future = req.request_async(b"x")
        assert rep.recv(DEADLINE).content == b"x"
        again = rep.recv(DEADLINE)
        again.reply(b"second")
        assert future.result(DEADLINE) == b"second"


def test_kept_until_somebody_is_there(address: str, threads: Start) -> None:
    with Req(resend=1000.0) as req, Rep(double) as rep:
        req.listen(address)
        replies: list[bytes] = []
        threads(lambda: replies.append(req.request(b"x", DEADLINE)))
        future = req.request_async(b"y")
        rep.dial(address)
        rep.start()
        assert future.result(DEADLINE) == b"yy"
        wait_until(lambda: replies == [b"xx"], "the other one, too")


def test_spread_over_all_peers(address: str) -> None:
    with Req(resend=1000.0) as req, Rep() as one, Rep() as other:
        req.listen(address)
        one.dial(address)
        other.dial(address)
        wait_until(lambda: len(req.socket.pipes) == 2, "both are connected")
        futures = [req.request_async(b"%d" % i) for i in range(10)]
        for rep in (one, other):
            for _ in range(5):
                rep.recv(DEADLINE).reply(b"x")
        assert [future.result(DEADLINE) for future in futures] == [b"x"] * 10


def test_nothing_is_sent_twice_without_resend(address: str) -> None:
    with connected(address) as (rep, req):
        future = req.request_async(b"x")
        request = rep.recv(DEADLINE)
        with pytest.raises(ms.Timeout):
            rep.recv(0.1)
        request.reply(b"y")
        assert future.result(DEADLINE) == b"y"


@pytest.mark.parametrize("method", START_METHODS)
def test_requests_survive_many_kills(ipc: str, processes: Processes, method: str) -> None:
    """Workers behind connections of their own; of those that are killed, others take over."""
    with Req(resend=1000.0) as req:
        req.listen(ipc)
        workers = [processes.start(_serve, ipc, method=method) for _ in range(3)]
        wait_until(lambda: len(req.socket.pipes) == 3, "all are connected")
        for _ in range(3):
            futures = [req.request_async(b"%d" % i) for i in range(200)]
            workers.pop(0).kill()
            workers.append(processes.start(_serve, ipc, method=method))
            assert [future.result(DEADLINE) for future in futures] == [b"%d" % i * 2 for i in range(200)]
        assert not req._resender._requests  # type: ignore[union-attr]
        assert not req._answers._askers
        req.close()


def _serve(address: str) -> None:
    with Rep(double) as rep:
        rep.dial(address, dial_async=True)
        rep.serve()


@pytest.mark.parametrize("method", START_METHODS)
def test_a_listening_worker_is_killed(ipc: str, folder: Path, processes: Processes, method: str) -> None:
    """Another one listens at the same path, and gets what the first one had."""
    with Req(resend=1000.0) as req:
        first = processes.start(_listen_and_hold, ipc, method=method)
        wait_until(lambda: os.path.exists(folder / "s"), "the first one listens")
        req.dial(ipc, min_reconnect_time=0.01, max_reconnect_time=0.1, dial_async=True)
        wait_until(lambda: req.socket.pipes, "it is connected")
        future = req.request_async(b"x")
        wait_until(lambda: req.socket.stats()["sent"], "it has the request")
        first.kill()
        with Rep(double) as rep:
            wait_until(lambda: ms.clean() is not None and not os.path.exists(folder / "s"), "its path is free")
            rep.listen(ipc)
            rep.start()
            assert future.result(DEADLINE) == b"xx"


def _listen_and_hold(address: str) -> None:
    with Rep() as rep:
        rep.listen(address)
        for request in rep:
            assert request.content


def test_a_resend_far_away(address: str) -> None:
    """No selector takes such a time; and all Sockets share one."""
    for resend in (1e7, 1e300, math.inf):
        with connected(address, double, resend=resend) as (_, req):
            assert req.request(b"x", DEADLINE) == b"xx"
    with connected(address, double, resend=0.05) as (_, req):
        assert req.request(b"x", DEADLINE) == b"xx"


def test_nothing_is_kept_of_a_closed_req(address: str) -> None:
    with Rep(double) as rep:
        rep.listen(address)
        rep.start()
        sockets = []
        for _ in range(5):
            with Req(resend=1000.0, send_stop_timeout=0) as req:
                req.dial(address)
                assert req.request(b"x", DEADLINE) == b"xx"
                sockets.append(weakref.ref(req.socket))
            del req
        wait_until(lambda: gc.collect() is not None and not any(one() for one in sockets), "they are gone")


@pytest.mark.parametrize("resend", [None, 1000.0])
def test_closing_while_many_ask(address: str, threads: Start, resend: float | None) -> None:
    """Whatever was asked before, or in the same moment, has an end."""
    for _ in range(10):
        futures: list[Future[bytes]] = []
        with Req(resend=resend, send_stop_timeout=0) as req, Rep() as rep:
            rep.listen(address)
            req.dial(address)

            asking = [threads(_ask_until_closed, req, futures) for _ in range(3)]
            rep.recv(DEADLINE)
            req.close()
            for thread in asking:
                thread.join(DEADLINE)
                assert not thread.is_alive()
            assert not wait(futures, DEADLINE).not_done
            assert {type(future.exception(0)) for future in futures} <= {ms.Closed}


def _ask_until_closed(req: Req, futures: list[Future[bytes]]) -> None:
    with suppress(ms.Closed):
        while True:
            futures.append(req.request_async(b"x"))


# --- what should not be ---


def test_nonsense_is_dropped(address: str) -> None:
    with connected(address, double) as (rep, req):
        for body in (b"", b"abc"):
            req.socket.send(body)
        req.socket.send_msg(ms.Message(b"\0\0\0\0control", flags=CONTROL))
        wait_until(lambda: rep.socket.pipes, "it is connected")
        path = (rep.socket.pipes[0].id,)
        for flags in (0, CONTROL):
            for body in (b"", b"a", b"\0\0\0\0nobody has asked this"):
                rep.socket.send_msg(ms.Message(body, send_type=TO_DESTINATION, destination=path, flags=flags))
        assert req.request(b"x", DEADLINE) == b"xx"


def test_closing_ends_all_who_wait(address: str, threads: Start) -> None:
    with connected(address) as (rep, req):
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                req.request(b"x", None)
            except ms.Error as error:
                errors.append(error)

        futures = [req.request_async(b"x") for _ in range(5)]
        waiting = [threads(ask) for _ in range(5)]
        for _ in range(10):
            rep.recv(DEADLINE)
        req.close()
        for thread in waiting:
            thread.join(DEADLINE)
        errors += [error for future in futures if (error := future.exception(DEADLINE)) is not None]
        assert [type(error) for error in errors] == [ms.Closed] * 10
        for call in (req.request, req.request_async):
            with pytest.raises(ms.Closed):
                call(b"x")


def test_only_where_it_was_made(ipc: str, processes: Processes) -> None:
    with connected(ipc, double) as (_, req):

        def child() -> None:
            for call in (req.request, req.request_async):
                with pytest.raises(ms.NotSupported, match="make one here"):
                    call(b"x")

        processes.join(processes.start(child))
        with pytest.raises(ms.NotSupported, match="a Req stays"):
            pickle.dumps(req)
        assert req.request(b"x", DEADLINE) == b"xx"


def test_bad_options() -> None:
    for wrong in (0, -1, "1", True, math.nan):
        with pytest.raises(ms.BadOption, match="resend"):
            Req(resend=wrong)  # type: ignore[arg-type]
    for wrong in (0, -1, 1.5, "1", True, None):
        with pytest.raises(ms.BadOption, match="workers"):
            Rep(double, workers=wrong)  # type: ignore[arg-type]
    for kind in (Req, Rep):
        with pytest.raises(ms.BadOption, match="nonsense"):
            kind(nonsense=1)
    with Rep() as rep, pytest.raises(ms.BadOption, match="handler"):
        rep.start()


def _start_and_close(rep: Rep, how: str) -> None:
    if how == "start":
        rep.start()
        rep.close()
        return
    thread = threading.Thread(target=rep.serve)
    thread.start()
    rep.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()


@pytest.mark.parametrize("how", ["start", "serve"])
@pytest.mark.parametrize("method", START_METHODS)
def test_a_child_closes_its_handle_while_it_waits(ipc: str, processes: Processes, method: str, how: str) -> None:
    with connected(ipc, bytes.upper) as (rep, req):
        processes.join(processes.start(_start_and_close, rep, how, method=method))
        assert req.request(b"x", DEADLINE) == b"X"
