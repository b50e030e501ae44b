"""The Socket for coroutines."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy
import pytest

import multisocket as ms
import multisocket.aio as aio
from conftest import DEADLINE, START_METHODS, Processes, wait_until

T = TypeVar("T")


def run(main: Awaitable[T]) -> T:
    async def in_time() -> T:
        return await asyncio.wait_for(main, DEADLINE)

    return asyncio.run(in_time())


@asynccontextmanager
async def connected(address: str, **options: Any) -> AsyncIterator[tuple[aio.Socket, aio.Socket]]:
    options.setdefault("send_stop_timeout", 0.0)
    async with aio.Socket(**options) as server, aio.Socket(**options) as client:
        await server.listen(address)
        await client.dial(address)
        while not server.pipes:
            await asyncio.sleep(0.001)
        yield server, client


def test_all_ways_to_send_and_receive(address: str, loop_kind: str) -> None:
    async def main() -> None:
        assert (loop_kind == "uvloop") == type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        async with connected(address) as (server, client):
            await client.send(b"one")
            assert await server.recv() == b"one"
            await client.send(bytearray(b"two"))
            msg = await server.recv_msg()
            await server.send_to(msg.source, b"answer")
            assert await client.recv() == b"answer"
            assert await server.send_all(b"all") == 1
            assert await client.recv() == b"all"
            assert await client.send_many([b"%d" % i for i in range(1000)]) == 1000
            got: list[bytes] = []
            while len(got) < 1000:
                got += await server.recv_many(300)
            assert got == [b"%d" % i for i in range(1000)]
            await client.send_obj({"a": [1, 2]})
            assert await server.recv_obj() == {"a": [1, 2]}
            array = numpy.arange(1 << 20)
            await client.send_obj(array, serializer="pickle")
            if not address.startswith("tcp"):
                assert (await server.recv_obj() == array).all()
            else:
                with pytest.raises(ms.BadMessage):
                    await server.recv_obj()
            with await client.loan(1 << 20) as loan:
                loan.buffer[:4] = b"head"
                await client.send_loan(loan)
            assert (await server.recv())[:4] == b"head"
            await client.send(b"forward me")
            (msg,) = await server.recv_msgs(10)
            await server.send_msg(msg)
            assert await client.recv() == b"forward me"

    run(main())


def test_iterating_ends_with_close(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (server, client):

            async def collect() -> list[bytes]:
                return [msg.content async for msg in server]

            task = asyncio.ensure_future(collect())
            await client.send(b"one")
            while server.stats()["received"] == 0:
                await asyncio.sleep(0.001)
            await server.close()
            assert await task == [b"one"]

    run(main())


def test_timeouts(address: str) -> None:
    async def main() -> None:
        async with connected(address, recv_timeout=0.05) as (server, client):
            for timeout in (0, 0.01):
                with pytest.raises(ms.Timeout, match="no message came"):
                    await server.recv(timeout)
            with pytest.raises(ms.Timeout, match=r"0\.05"):
                await server.recv()
            await client.send(b"x")
            assert await server.recv(None) == b"x"

    run(main())


@pytest.mark.local
def test_no_room(address: str) -> None:
    async def main() -> None:
        async with connected(address, recv_queue_size=2) as (server, client):
            assert await client.send_many([b"1", b"2"]) == 2
            for send in (client.send, client.send_all):
                with pytest.raises(ms.Timeout, match="room"):
                    await send(b"3", 0.01)
            with pytest.raises(ms.Timeout) as caught:
                await client.send_many([b"3", b"4"], 0.01)
            assert caught.value.sent == 0
            sending = asyncio.ensure_future(client.send_many([b"3", b"4", b"5"]))
            assert [await server.recv() for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]
            assert await sending == 3

    run(main())


def test_best_effort_never_waits() -> None:
    async def main() -> None:
        async with aio.Socket(recv_queue_size=1) as server, aio.Socket(send_best_effort=True) as client:
            await server.listen("inproc://aio-best-effort")
            await client.dial("inproc://aio-best-effort")
            await client.send(b"1")
            with pytest.raises(ms.MessageDropped):
                await client.send(b"2")
            assert await client.send_all(b"3") == 0

    run(main())


def test_to_all_once_each_although_some_have_no_room() -> None:
    async def main() -> None:
        async with aio.Socket() as server, aio.Socket() as quick, aio.Socket(recv_queue_size=1) as slow:
            await server.listen("inproc://aio-all")
            await quick.dial("inproc://aio-all")
            await slow.dial("inproc://aio-all")
            assert await server.send_all(b"1") == 2
            with pytest.raises(ms.Timeout) as caught:
                await server.send_all(b"2", 0.02)
            assert caught.value.sent == 1
            task = asyncio.ensure_future(server.send_all(b"3"))
            assert [await slow.recv(), await slow.recv()] == [b"1", b"3"]
            assert await task == 2
            assert [await quick.recv() for _ in range(3)] == [b"1", b"2", b"3"]
            with pytest.raises(ms.Timeout):
                await quick.recv(0)

    run(main())


def test_cancelled_receives_lose_nothing(address: str) -> None:
    """Tasks are cancelled all the time while messages come, at any point of theirs."""
    count = 3000

    async def main() -> None:
        got: list[bytes] = []

        async with connected(address) as (server, client):

            async def receive() -> None:
                while True:
                    content = await server.recv()
                    got.append(content)

            async def send() -> None:
                for i in range(count):
                    await client.send(b"%d" % i)
                    if i % 7 == 0:
                        await asyncio.sleep(0)

            sending = asyncio.ensure_future(send())
            tasks = [asyncio.ensure_future(receive()) for _ in range(5)]
            turn = 0
            while len(got) < count:
                await asyncio.sleep(0 if turn % 5 else 0.001)
                turn += 1
                victim = turn % len(tasks)
                tasks[victim].cancel()
                await asyncio.gather(tasks[victim], return_exceptions=True)
                tasks[victim] = asyncio.ensure_future(receive())
            await sending
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(got, key=int) == [b"%d" % i for i in range(count)]

    run(main())


def test_wait_for_loses_nothing(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (server, client):
            got = []

            async def send() -> None:
                for i in range(500):
                    await client.send(b"%d" % i)
                    await asyncio.sleep(0.0005)

            sending = asyncio.ensure_future(send())
            while len(got) < 500:
                try:
                    got.append(int(await asyncio.wait_for(server.recv(), 0.0005)))
                except asyncio.TimeoutError:
                    continue
            await sending
            assert got == list(range(500))

    run(main())


def test_thousands_of_waits_cost_few_threads(folder: object) -> None:
    async def main() -> None:
        sockets = [aio.Socket() for _ in range(300)]
        before = threading.active_count()
        waits = [asyncio.ensure_future(sock.recv()) for sock in sockets for _ in range(10)]
        async with aio.Socket() as sender:
            # Until all sleep.
            await asyncio.sleep(0.05)
            assert threading.active_count() - before <= 4
            for i, sock in enumerate(sockets):
                await sock.listen(f"inproc://{folder}-{i}")
                await sender.dial(f"inproc://{folder}-{i}")
            for _ in range(10):
                await sender.send_all(b"x")
            assert await asyncio.gather(*waits) == [b"x"] * 3000
            for sock in sockets:
                await sock.close()

    run(main())


def test_closing_wakes_all_waits(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (server, _):
            waits = [asyncio.ensure_future(server.recv()) for _ in range(20)]
            await asyncio.sleep(0.01)
            await server.close()
            for result in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(result, ms.Closed)
            with pytest.raises(ms.Closed):
                await server.send(b"x")
            await server.close()

    run(main())


def test_other_tasks_go_on_while_messages_come_and_go(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (server, client):
            done = False
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while not done:
                    ticks += 1
                    await asyncio.sleep(0)

            task = asyncio.ensure_future(tick())
            for _ in range(50):
                await client.send_many([b"x"] * 20)
                for _ in range(20):
                    await server.recv()
            done = True
            await task
            assert ticks >= 10

    run(main())


def _echo(sock: aio.Socket) -> None:
    async def main() -> None:
        async for msg in sock:
            await sock.send_to(msg.source, b"%d" % os.getpid())

    asyncio.run(main())


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_share_it(ipc: str, processes: Processes, method: str) -> None:
    async def main() -> None:
        async with connected(ipc) as (server, client):
            children = [processes.start(_echo, server, method=method) for _ in range(2)]
            seen: set[bytes] = set()
            while len(seen) < 2:
                await client.send(b"who?")
                seen.add(await client.recv())
            assert seen == {b"%d" % child.pid for child in children}
            await server.close()
            await asyncio.get_running_loop().run_in_executor(None, processes.join, *children)

    run(main())


def _own(address: str, ready: Any, borrowed: Any) -> None:
    with ms.Socket() as sock:
        sock.listen(address)
        context = multiprocessing.get_context("fork")
        context.Process(target=_borrow, args=(sock, borrowed)).start()
        ready.set()
        threading.Event().wait(DEADLINE)


def _borrow(sock: ms.Socket, borrowed: Any) -> None:
    async def main() -> str:
        try:
            await aio.Socket.of(sock).recv(DEADLINE)
        except ms.Closed as error:
            return str(error)
        return "no end"

    borrowed.send(asyncio.run(main()))


def test_a_killed_owner_ends_waits_in_other_processes(ipc: str, processes: Processes) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    ours, theirs = context.Pipe()
    owner = processes.start(_own, ipc, ready, theirs)
    assert ready.wait(DEADLINE)
    os.kill(owner.pid, signal.SIGKILL)
    assert ours.poll(DEADLINE)
    assert "has ended" in ours.recv()
    wait_until(lambda: ms.clean() is not None and not os.path.exists(ipc[6:]), "what was left is removed")


def test_one_loop_after_another(address: str) -> None:
    sock, peer = ms.Socket(), ms.Socket()
    with sock, peer:
        sock.listen(address)
        peer.dial(address)
        for i in range(3):
            timer = threading.Timer(0.02, peer.send, (b"%d" % i,))
            timer.start()
            assert run(aio.Socket.of(sock).recv()) == b"%d" % i
            timer.join()


def test_threads_and_tasks_take_from_one_socket(address: str, threads: Callable[..., object]) -> None:
    async def main() -> None:
        async with connected(address) as (server, client):
            got: list[bytes] = []

            def take() -> None:
                for msg in server.socket:
                    got.append(msg.content)

            threads(take)

            async def take_too() -> None:
                async for msg in server:
                    got.append(msg.content)

            task = asyncio.ensure_future(take_too())
            for i in range(2000):
                await client.send(b"%d" % i)
                if i % 100 == 0:
                    await asyncio.sleep(0.001)
            while len(got) < 2000:
                await asyncio.sleep(0.001)
            await server.close()
            await task
            assert sorted(got, key=int) == [b"%d" % i for i in range(2000)]

    run(main())


def test_a_cancelled_dial_leaves_nothing(ipc: str) -> None:
    async def main() -> None:
        async with aio.Socket() as server, aio.Socket() as client:
            await server.listen(ipc)
            task = asyncio.ensure_future(client.dial(ipc))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await client.dial(ipc)
            await client.send(b"x")
            assert await server.recv() == b"x"

    run(main())
