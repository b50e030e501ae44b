"""Streams for coroutines."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import multisocket as ms
import multisocket.aio as aio
from conftest import DEADLINE, Processes
from multisocket import protocol

from .test_socket import run


@asynccontextmanager
async def connected(address: str, **options: Any) -> AsyncIterator[tuple[aio.Stream, aio.Stream]]:
    async with aio.Stream(**options) as server, aio.Stream(**options) as client:
        await server.listen(address)
        await client.dial(address)
        while not server.socket.pipes:
            await asyncio.sleep(0.001)
        yield server, client


async def both(server: aio.Stream, client: aio.Stream) -> tuple[aio.ByteStream, aio.ByteStream]:
    theirs, ours = await asyncio.gather(server.accept(DEADLINE), client.connect(timeout=DEADLINE))
    return theirs, ours


def test_there_and_back(address: str) -> None:
    content = os.urandom(1 << 20) * 3

    async def main() -> None:
        async with connected(address) as (server, client):
            theirs, ours = await both(server, client)

            async def echo() -> None:
                async with theirs:
                    async for part in theirs:
                        await theirs.write(part)
                    await theirs.shutdown_write()

            async def send() -> None:
                await ours.write(content)
                await ours.shutdown_write()

            tasks = [asyncio.ensure_future(echo()), asyncio.ensure_future(send())]
            assert await ours.readexactly(10) == content[:10]
            assert await ours.read(0) == b""
            assert await ours.read() == content[10:]
            with pytest.raises(asyncio.IncompleteReadError):
                await ours.readexactly(1)
            await asyncio.gather(*tasks)
            assert ours.reason is None
            await ours.close()
            await ours.close()
            with pytest.raises(ValueError, match="closed"):
                await ours.read(1)
            assert len(client._flows) == 0

    run(main())


def test_a_hundred_streams(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (server, client):

            async def serve() -> None:
                for _ in range(100):
                    stream = await server.accept()
                    serving.append(asyncio.ensure_future(answer(stream)))

            async def answer(stream: aio.ByteStream) -> None:
                async with stream:
                    await stream.write((await stream.read())[::-1])

            async def ask(number: int) -> bool:
                async with await client.connect(timeout=DEADLINE) as stream:
                    await stream.write(b"%d" % number * 100)
                    await stream.shutdown_write()
                    return await stream.read() == (b"%d" % number * 100)[::-1]

            serving: list[asyncio.Task[None]] = []
            accepting = asyncio.ensure_future(serve())
            assert all(await asyncio.gather(*(ask(number) for number in range(100))))
            await accepting
            await asyncio.gather(*serving)

    run(main())


def test_backpressure_and_timeouts(address: str) -> None:
    async def main() -> None:
        async with connected(address, window=1000) as (server, client):
            theirs, ours = await both(server, client)
            ours.settimeout(0.02)
            with pytest.raises(ms.Timeout, match="nothing came"):
                await ours.read(1)
            with pytest.raises(ms.Timeout, match="read nothing"):
                await ours.write(b"x" * 1500)
            assert await theirs.readexactly(1000) == b"x" * 1000
            ours.settimeout(None)
            writing = asyncio.ensure_future(ours.write(b"y" * 5000))
            assert await theirs.readexactly(5000) == b"y" * 5000
            await writing
            reading = asyncio.ensure_future(theirs.read(10))
            await asyncio.sleep(0.001)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await ours.write(b"not lost")
            assert await theirs.read(10) == b"not lost"

    run(main())


def test_nobody_accepts_and_too_many_wait(address: str) -> None:
    async def main() -> None:
        async with connected(address, backlog=1) as (server, client):
            with pytest.raises(ms.Timeout):
                await server.accept(0.01)
            with pytest.raises(ms.Timeout, match="accepted"):
                await client.connect(timeout=0.05)
            with pytest.raises(ms.ConnectionRefused):
                await client.connect(timeout=DEADLINE)
            assert len(await asyncio.gather(client.connect(f"{address}?reconnect=false#dial"))) == 1

    run(main())


def test_closing_ends_all(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (server, client):
            theirs, ours = await both(server, client)
            accepting = asyncio.ensure_future(server.accept())
            reading = asyncio.ensure_future(ours.read())
            await theirs.write(b"last")
            await asyncio.sleep(0.01)
            await server.close()
            assert await reading == b"last"
            (error,) = await asyncio.gather(accepting, return_exceptions=True)
            assert isinstance(error, ms.Closed)
            with pytest.raises((ms.BrokenPath, ms.Closed)):
                await ours.write(b"x")
            with pytest.raises(ms.Closed):
                await theirs.write(b"x")

    run(main())


def _hold(address: str, ready: Any) -> None:
    with protocol.Stream() as client:
        client.dial(address)
        stream = client.connect()
        stream.write(b"x" * 1000)
        ready.set()
        threading.Event().wait(DEADLINE)


def test_a_killed_peer(ipc: str, processes: Processes) -> None:
    ready = multiprocessing.get_context("fork").Event()

    async def main() -> None:
        async with aio.Stream() as server:
            await server.listen(ipc)
            peer = processes.start(_hold, ipc, ready)
            stream = await server.accept()  # the other end is one for threads
            assert await stream.readexactly(500) == b"x" * 500
            await asyncio.get_running_loop().run_in_executor(None, ready.wait, DEADLINE)
            peer.kill()
            assert await stream.read() == b"x" * 500
            assert stream.reason == "the peer is gone"
            with pytest.raises(ms.BrokenPath, match="gone"):
                await stream.write(b"y")

    run(main())


def test_a_silent_peer(address: str) -> None:
    """The other end does not answer: nobody reads its Socket."""

    async def main() -> None:
        async with aio.Stream(idle_time=0.05, probe_interval=0.02, probes=2) as server, aio.Socket() as client:
            await server.listen(address)
            await client.dial(address)
            await client.send_msg(ms.Message(b"\1\0\0\0\0\0\0\0\7\0\0\0\7", flags=32))
            stream = await server.accept()
            assert await stream.read() == b""
            assert "did not answer" in str(stream.reason)
            assert len([await client.recv(DEADLINE) for _ in range(3)]) == 3  # accepted, and two probes

    run(main())


def test_an_end_that_could_not_be_told_is_told_later() -> None:
    async def main() -> None:
        name = f"inproc://end-{os.getpid()}"
        async with aio.Stream() as server, aio.Socket(recv_queue_size=2) as peer:
            await server.listen(name)
            await peer.dial(name)
            await peer.send_msg(ms.Message(b"\1\0\0\0\0\0\0\0\7\0\0\0\7", flags=32))
            stream = await server.accept(DEADLINE)
            stream.settimeout(0.02)
            await stream.write(b"x")  # beside the word that it is accepted
            with pytest.raises(ms.Timeout):
                await stream.shutdown_write()
            assert [len(await peer.recv(DEADLINE)) for _ in range(2)] == [13, 9]
            await stream.shutdown_write()
            assert (await peer.recv(DEADLINE))[0] == 4

    run(main())


def test_one_who_takes_no_messages_keeps_nobody_from_being_accepted() -> None:
    async def main() -> None:
        name = f"inproc://full-{os.getpid()}"
        async with aio.Stream() as server, aio.Socket(recv_queue_size=1) as full, aio.Stream() as client:
            await server.listen(name)
            await full.dial(name)
            await server.socket.send_all(b"fills its queue")
            await full.send_msg(ms.Message(b"\1\0\0\0\0\0\0\0\7\0\0\0\7", flags=32))
            while not server._flows.waiting:
                await asyncio.sleep(0.001)
            await client.dial(name)
            theirs, ours = await both(server, client)
            await ours.write(b"x")
            assert await theirs.read(1) == b"x"
            with pytest.raises(ms.Timeout):
                await server.accept(0.03)
            assert await full.recv(DEADLINE) == b"fills its queue"
            await server.accept(DEADLINE)

    run(main())
