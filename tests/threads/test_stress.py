"""Eight threads on one object, for each kind of object, until all is done: nothing is lost, doubled, or freed while it
is in use. Run on Pythons with and without a GIL."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import random
import sys
import sysconfig
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for_futures
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, Processes, free_port, names_in_shm, wait_until
from multisocket import aio, names, shm
from multisocket.pool import Executor, Pool
from multisocket.protocol import Pub, Sub

THREADS = 8
# How often each thread does its part; a race detector takes ten times as long.
ROUNDS = int(os.environ.get("MULTISOCKET_STRESS_ROUNDS", "200"))
LARGE = 1 << 18


def together(*works: Callable[[int], object]) -> None:
    """Calls each with its number, all at the same time, each in a thread; what one raises is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(number: int, work: Callable[[int], object]) -> None:
        try:
            start.wait(DEADLINE)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(works)]
    end = time.monotonic() + 2 * DEADLINE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def pair(scheme: str, **options: Any) -> tuple[ms.Socket, ms.Socket]:
    """Two that are connected."""
    server, client = ms.Socket(send_stop_timeout=0.0, **options), ms.Socket(send_stop_timeout=0.0, **options)
    address = f"tcp://127.0.0.1:{free_port()}" if scheme == "tcp" else f"{scheme}://@mstest-{uuid.uuid4().hex[:12]}"
    server.listen(address)
    client.dial(address)
    return server, client


def shared_memory() -> set[str]:
    """Of this process."""
    prefix = Path(names.guard_path()).name.removesuffix(".guard")
    return {name for name in names_in_shm() if name.startswith(f"{prefix}-")}


each_scheme = pytest.mark.parametrize("scheme", ["inproc", "ipc", "tcp"])


@each_scheme
@pytest.mark.parametrize("size", [20, LARGE])
def test_a_socket_sends_and_receives_in_all_threads(scheme: str, size: int) -> None:
    server, client = pair(scheme, arena_limit=LARGE * 32)
    rounds = ROUNDS if size == 20 else max(2, ROUNDS // 10)
    got: list[bytes] = []
    left = itertools.count(1)
    total = rounds * THREADS // 2

    def send(number: int) -> None:
        for i in range(rounds):
            client.send(b"%d %d " % (number, i) + bytes(size), timeout=DEADLINE)

    def receive(number: int) -> None:
        for _ in range(rounds):
            got.append(server.recv(DEADLINE) if number % 2 else server.recv_msg(DEADLINE).content)
            next(left)

    def look(number: int) -> None:
        while len(got) < total:
            assert client.stats()["sent"] <= total
            assert len(client.pipes) <= 1
            assert "Socket" in repr(server)
            assert not server.closed

    with server, client:
        together(*[send] * (THREADS // 2), *[receive] * (THREADS // 2), look)
        assert Counter(content.rstrip(b"\0") for content in got) == Counter(
            b"%d %d " % (number, i) for number in range(THREADS // 2) for i in range(rounds)
        )
        assert client.stats()["sent"] == server.stats()["received"] == total


@each_scheme
def test_a_socket_is_closed_while_all_threads_use_it(scheme: str) -> None:
    for _ in range(max(3, ROUNDS // 20)):
        server, client = pair(scheme)
        served = threading.Semaphore(0)

        def use(number: int, server: ms.Socket = server, served: threading.Semaphore = served) -> None:
            with contextlib.suppress(ms.Closed):
                while True:
                    served.release()
                    if number == 0:
                        server.stats()
                    elif number < 3:
                        with contextlib.suppress(ms.Timeout):
                            server.send(bytes(100), timeout=0.001)
                    elif number == 3:
                        with contextlib.suppress(ms.Timeout):
                            server.send_many([bytes(100)] * 10, timeout=0.001)
                    elif number == 4:
                        with contextlib.suppress(ms.Timeout), server.loan(LARGE, timeout=0.001) as loan:
                            loan.send(timeout=0.001)
                    elif number == 5:
                        with contextlib.suppress(ms.Timeout), server.recv_msg(0.001, copy=False):
                            pass
                    elif number == 6:
                        server.recv(None)
                    else:
                        len(server.pipes)

        def feed(number: int, client: ms.Socket = client) -> None:
            with contextlib.suppress(ms.Closed):
                while True:
                    with contextlib.suppress(ms.Timeout):
                        client.send(bytes(random.choice([10, LARGE])), timeout=0.001)

        # Not a semaphore's count for each: what one has closed serves the other no more.
        both = threading.Barrier(2, action=lambda served=served: [served.acquire(timeout=DEADLINE) for _ in range(20)])

        def close(number: int, server: ms.Socket = server, client: ms.Socket = client, both: Any = both) -> None:
            both.wait(2 * DEADLINE)
            server.close()
            client.close()

        together(*[use] * THREADS, feed, close, close)
    wait_until(lambda: not shared_memory(), "what had been sent and is lost is given back once a second")


def test_a_handle_is_given_up_while_all_threads_use_it() -> None:
    server, client = pair("ipc")
    with server, client:
        for _ in range(max(3, ROUNDS // 20)):
            handle: ms.Socket = pickle.loads(pickle.dumps(client))
            sent = threading.Semaphore(0)

            def send(number: int, handle: ms.Socket = handle, sent: threading.Semaphore = sent) -> None:
                with contextlib.suppress(ms.Closed):
                    while True:
                        sent.release()
                        with contextlib.suppress(ms.Timeout):
                            handle.send(bytes(LARGE if number == 0 else 10), timeout=0.001)

            def receive(number: int) -> None:
                with contextlib.suppress(ms.Timeout):
                    while True:
                        server.recv(0.01)

            def close(number: int, handle: ms.Socket = handle, sent: threading.Semaphore = sent) -> None:
                for _ in range(20):
                    assert sent.acquire(timeout=DEADLINE)
                handle.close()

            together(*[send] * (THREADS - 2), receive, close)
        assert not client.closed


def test_pipes_come_and_go_while_all_threads_send() -> None:
    address = f"ipc://@mstest-{uuid.uuid4().hex[:12]}"
    with ms.Socket(send_stop_timeout=0.0) as server:
        server.listen(address)
        done = threading.Event()

        def come_and_go(number: int) -> None:
            try:
                for i in range(max(2, ROUNDS // 10)):
                    with ms.Socket(send_stop_timeout=0.0) as client:
                        client.dial(address)
                        client.send(b"come")
                        with contextlib.suppress(ms.Timeout):
                            client.recv(0.01)
                        if i % 2:
                            client.close_pipe(client.pipes[0].id)
            finally:
                done.set()

        def send(number: int) -> None:
            while not done.is_set():
                with contextlib.suppress(ms.Timeout):
                    if number % 3 == 0:
                        server.send_all(bytes(50), timeout=0.01)
                    elif number % 3 == 1:
                        server.send(bytes(LARGE), timeout=0.01)
                    else:
                        server.recv(0.01)

        together(*[come_and_go] * 3, *[send] * (THREADS - 2))


def test_a_message_is_read_sent_and_released_by_all_threads() -> None:
    server, client = pair("inproc")
    with server, client:
        for number in range(max(5, ROUNDS // 4)):
            client.send(bytes([number % 256]) * LARGE)
            msg = server.recv_msg(DEADLINE, copy=False)
            sent = itertools.count()

            def use(turn: int, msg: ms.Message[Any] = msg, sent: Any = sent, value: int = number % 256) -> None:
                with contextlib.suppress(ValueError, ms.BadMessage):  # released by another thread
                    if turn % 4 == 0:
                        with memoryview(msg.content) as view:
                            assert view[0] == view[LARGE - 1] == value
                    elif turn % 4 == 1:
                        server.send_msg(msg)
                        next(sent)
                    elif turn % 4 == 2:
                        assert "Message" in repr(msg)
                        assert msg.with_content(b"").content == b""
                msg.release()

            together(*[use] * THREADS)
            with pytest.raises(ms.BadMessage, match="released"):
                server.send_msg(msg)
            for _ in range(next(sent)):
                assert client.recv(DEADLINE) == bytes([number % 256]) * LARGE
        del msg
        assert client.stats()["arena_used"] == server.stats()["arena_used"] == 0


def test_a_loan_is_sent_by_one_of_all_threads() -> None:
    server, client = pair("inproc")
    with server, client:
        for size in [10, LARGE] * max(3, ROUNDS // 8):
            loan = client.loan(size)
            loan.buffer[:] = bytes(size)
            sent = itertools.count()

            def send(number: int, loan: shm.Loan = loan, sent: Any = sent, size: int = size) -> None:
                if number == 0:
                    buffer = loan.buffer
                    with contextlib.suppress(ValueError):  # another thread has sent it just now
                        assert buffer is None or buffer.nbytes == size
                with contextlib.suppress(ms.BadMessage):
                    loan.send(timeout=DEADLINE)
                    next(sent)
                loan.give_back()

            together(*[send] * THREADS)
            count = next(sent)
            assert count <= 1
            for _ in range(count):
                assert len(server.recv(DEADLINE)) == size
            with pytest.raises(ms.Timeout):
                server.recv(0)
        del loan
        assert client.stats()["arena_used"] == 0


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")) and sys.version_info < (3, 14),
    reason="a memoryview of CPython 3.13t counts its users without a lock: one may not be shared by threads",
)
def test_views_of_a_content_are_made_and_dropped_by_all_threads() -> None:
    server, client = pair("inproc")
    with server, client:
        for _ in range(max(3, ROUNDS // 8)):
            client.send(b"x" * LARGE)
            content = server.recv_msg(DEADLINE, copy=False).content

            def view(number: int, content: memoryview = content) -> None:
                for _ in range(20):
                    part = memoryview(content)[number : number + 100]
                    assert bytes(part) == b"x" * 100
                    del part

            together(*[view] * THREADS)
            del content, view
        assert client.stats()["arena_used"] == 0


def test_connections_over_tcp_come_and_go_in_all_threads() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with ms.Socket(send_stop_timeout=0.0) as server:
        server.listen(address)

        def ask(number: int) -> None:
            for i in range(max(2, ROUNDS // 20)):
                with ms.Socket(send_stop_timeout=0.0) as client:
                    client.dial(address)
                    client.send(bytes(random.choice([10, LARGE])))
                    assert client.recv(DEADLINE) == b"answer"
                    if i % 2:
                        client.close_pipe(client.pipes[0].id)

        def answer(number: int) -> None:
            for _ in range(2 * max(2, ROUNDS // 20)):
                msg = server.recv_msg(DEADLINE)
                server.send_to(msg.source, b"answer")

        together(*[ask] * (THREADS // 2), *[answer] * (THREADS // 4))


def test_event_loops_of_all_threads_wait_for_their_own_sockets_and_for_one() -> None:
    name = f"inproc://{uuid.uuid4().hex[:12]}"
    rounds = max(5, ROUNDS // 4)
    with ms.Socket(send_stop_timeout=0.0) as feeder:
        feeder.listen(name)

        def loop(number: int) -> None:
            async def main() -> None:
                async with aio.Socket(send_stop_timeout=0.0) as sock:
                    await sock.dial(name)
                    for _ in range(rounds):
                        await sock.send(b"more")
                        assert await asyncio.wait_for(sock.recv(), DEADLINE) == b"here"

            asyncio.run(main())

        def feed(number: int) -> None:
            for _ in range(rounds * (THREADS - 2) // 2):
                msg = feeder.recv_msg(DEADLINE)
                feeder.send_to(msg.source, b"here")

        together(*[loop] * (THREADS - 2), feed, feed)


def test_a_lookout_is_used_by_all_threads() -> None:
    lookout = shm.Lookout()
    running = threading.Thread(target=lookout.run, daemon=True)
    running.start()
    server, client = pair("inproc")
    others = [pair("inproc") for _ in range(4)]
    try:

        def use(number: int) -> None:
            receiver, sender = others[number % 4]
            for _ in range(ROUNDS):
                lookout.watch(receiver)
                sender.send(b"x", timeout=DEADLINE)
                for sock in lookout.struck():
                    assert isinstance(sock, ms.Socket)
                with contextlib.suppress(ms.Timeout):
                    receiver.recv(0)
                lookout.forget(receiver)

        together(*[use] * THREADS)
        assert lookout.watch(server)
        client.send(b"the last")
        end = time.monotonic() + DEADLINE
        found: list[Any] = []
        while server not in found and time.monotonic() < end:
            found += lookout.struck()
        assert server in found
    finally:
        lookout.stop()
        running.join(DEADLINE)
        for one in [server, client, *itertools.chain(*others)]:
            one.close()
    assert not running.is_alive()


def test_topics_are_published_and_received_by_all_threads() -> None:
    name = f"inproc://{uuid.uuid4().hex[:12]}"
    with Pub(slow="block") as pub, Sub() as sub:
        pub.listen(name)
        sub.dial(name)
        for topic in ("a", "b", "end"):
            sub.subscribe(topic)
        got: list[Any] = []
        rounds = ROUNDS * 2

        def publish(number: int) -> None:
            for i in range(rounds):
                pub.send("ab"[i % 2], b"%d %d" % (number, i), timeout=DEADLINE)

        def receive(number: int) -> None:
            while True:
                topic, content = sub.recv(DEADLINE)
                if topic == b"end":
                    return
                got.append((topic, content))

        def change(number: int) -> None:
            for i in range(ROUNDS // 10):
                sub.subscribe(f"other {i}")
                sub.unsubscribe(f"other {i}")

        def run(number: int) -> None:
            together(*[publish] * 4, change)
            for _ in range(3):
                pub.send("end", b"")

        together(*[receive] * 3, run)
        assert Counter(got) == Counter(
            (b"ab"[i % 2 : i % 2 + 1], b"%d %d" % (number, i)) for number in range(4) for i in range(rounds)
        )


def test_a_topic_that_all_threads_forget_is_not_received() -> None:
    name = f"inproc://{uuid.uuid4().hex[:12]}"
    with Pub(slow="block") as pub, Sub() as sub:
        pub.listen(name)
        sub.dial(name)
        sub.subscribe("kept")
        done = threading.Event()

        def publish(number: int) -> None:
            try:
                for _ in range(ROUNDS):
                    pub.send("kept", b"x", timeout=DEADLINE)
                    pub.send("changing", b"x", timeout=DEADLINE)
            finally:
                done.set()

        def receive(number: int) -> None:
            while not done.is_set():
                with contextlib.suppress(ms.Timeout):
                    assert sub.recv(0.01).topic in (b"kept", b"changing")

        def change(number: int) -> None:
            while not done.is_set():
                sub.subscribe("changing")
                sub.unsubscribe("changing")

        together(publish, publish, *[receive] * 4, change, change)
        while True:  # what was on its way
            try:
                sub.recv(0.05)
            except ms.Timeout:
                break
        for _ in range(10):
            pub.send("changing", b"x", timeout=DEADLINE)
        pub.send("kept", b"the last", timeout=DEADLINE)
        assert sub.recv(DEADLINE) == (b"kept", b"the last")


def test_a_ring_is_used_by_all_threads() -> None:
    name = f"/mstest-{uuid.uuid4().hex[:12]}"
    ring = shm.Ring.create(name, capacity=4096)
    try:
        got: list[bytes] = []

        def push(number: int) -> None:
            for i in range(ROUNDS):
                ring.push(b"%d %d" % (number, i), DEADLINE)

        def pop(number: int) -> None:
            other = shm.Ring.open(name)
            for i in range(ROUNDS):
                got.extend(ring.pop_many(1, DEADLINE) if i % 2 else [other.pop(DEADLINE)])
                assert ring.stats()["popped"] <= ring.stats()["pushed"]

        together(*[push] * (THREADS // 2), *[pop] * (THREADS // 2))
        assert Counter(got) == Counter(b"%d %d" % (number, i) for number in range(THREADS // 2) for i in range(ROUNDS))
        assert len(ring) == 0
    finally:
        ring.close()
        ring.unlink()


def test_a_board_is_used_by_all_threads() -> None:
    name = f"/mstest-{uuid.uuid4().hex[:12]}"
    board = shm.Board.create(name, THREADS)
    server, client = pair("inproc")
    try:
        taken: list[int] = []
        tasks = 5
        rounds = max(5, ROUNDS // 4)

        def send(number: int) -> None:
            for i in range(rounds * THREADS):
                head = (i + 1).to_bytes(4, "little") + tasks.to_bytes(4, "little")
                client.send(head + bytes(LARGE if i % 50 == 0 else 10), timeout=DEADLINE)

        def work(slot: int) -> None:
            board.ready(slot)
            for _ in range(rounds):
                taken.append(int.from_bytes(board.take(server, slot, DEADLINE)[:4], "little"))
                assert board.view(slot)[0] == taken[-1] or board.view(slot)[0]
                for i in range(tasks):
                    assert board.begin(slot) == i
                    assert len(board.outcome_head(slot, 0, 0)) == 16
                assert board.begin(slot) == -1

        def look(number: int) -> None:
            while len(taken) < rounds * THREADS:
                board.totals()
                for slot in range(THREADS):
                    board.view(slot)
                    board.is_ready(slot)

        together(*[work] * THREADS, send, look)
        assert sorted(taken) == list(range(1, rounds * THREADS + 1))
        assert board.totals()[0] == rounds * THREADS * tasks
    finally:
        server.close()
        client.close()
        shm.unlink_memory(name)


def double(number: int) -> int:
    return 2 * number


def test_an_executor_takes_tasks_from_all_threads() -> None:
    with Executor(2) as executor:
        assert executor.submit(double, 1).result(DEADLINE) == 2
        called = itertools.count()

        def submit(number: int) -> None:
            futures: list[Future[int]] = []
            for i in range(ROUNDS):
                futures.append(executor.submit(double, i))
                if i % 10 == 0:
                    futures[-1].add_done_callback(lambda _: next(called))
                if i % 10 == 5:
                    futures[-1].cancel()
            assert not wait_for_futures(futures, DEADLINE).not_done
            for i, future in enumerate(futures):
                try:
                    assert future.result(0) == 2 * i
                except CancelledError:
                    assert i % 10 == 5

        together(*[submit] * THREADS)
        assert next(called) == THREADS * len(range(0, ROUNDS, 10))


def test_a_future_is_watched_by_all_threads_when_it_gets_its_result() -> None:
    with Executor(2) as executor:
        for i in range(max(10, ROUNDS // 2)):
            future = executor.submit(double, i)
            called = itertools.count()

            def watch(number: int, future: Future[int] = future, called: Any = called, i: int = i) -> None:
                if number % 2:
                    future.add_done_callback(lambda _: next(called))
                assert future.result(DEADLINE) == 2 * i
                assert future.done()

            together(*[watch] * THREADS)
            assert next(called) == THREADS // 2


def test_a_pool_takes_tasks_from_all_threads() -> None:
    with Pool(2) as pool:

        def use(number: int) -> None:
            rounds = max(2, ROUNDS // 20)
            for i in range(rounds):
                results = [pool.apply_async(double, (k,)) for k in range(10)]
                assert [result.get(DEADLINE) for result in results] == [2 * k for k in range(10)]
                if number % 4 == 0:
                    assert pool.map(double, range(50)) == list(range(0, 100, 2))
                elif number % 4 == 1:
                    assert list(pool.imap(double, range(50), chunksize=3)) == list(range(0, 100, 2))
                elif number % 4 == 2:
                    assert sorted(pool.imap_unordered(double, range(50))) == list(range(0, 100, 2))
                else:
                    assert pool.apply(double, (i,)) == 2 * i

        together(*[use] * THREADS)


def test_the_first_sockets_of_a_process_are_made_by_all_threads(processes: Processes) -> None:
    code = """
import threading, uuid
import multisocket as ms
start, errors = threading.Barrier(8), []
def first(number):
    try:
        start.wait(30)
        with ms.Socket(send_stop_timeout=0) as server, ms.Socket(send_stop_timeout=0) as client:
            where = "tcp://127.0.0.1:0" if number % 2 else f"ipc://@mstest-{uuid.uuid4().hex[:12]}"
            client.dial(server.listen(where).address)
            client.send(bytes(1 << 18))
            assert len(server.recv(30)) == 1 << 18
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=first, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(errors or "well")
"""
    for _ in range(3):
        process = processes.run(code)
        out, err = process.communicate(timeout=2 * DEADLINE)
        assert out.strip() == "well", out + err
        assert process.returncode == 0, err
