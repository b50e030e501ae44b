"""Protocols for coroutines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

import multisocket as ms
import multisocket.aio as aio
from conftest import DEADLINE, Processes
from multisocket import protocol
from multisocket.background import background

from .test_socket import run


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_pipeline(address: str) -> None:
    async def main() -> None:
        async with aio.Push() as push, aio.Pull() as pull:
            await pull.listen(address)
            await push.dial(address)
            await push.send(b"one")
            assert await push.send_many([b"two", b"three"]) == 2
            await push.send_obj(["four"])
            assert await pull.recv() == b"one"
            assert [await pull.recv(), await pull.recv()] == [b"two", b"three"]
            assert await pull.recv_obj() == ["four"]
            await push.send(b"five")
            async for content in pull:
                assert content == b"five"
                break
            with pytest.raises(ms.NotSupported):
                await push.socket.recv()

    run(main())


def test_pair(address: str) -> None:
    async def main() -> None:
        async with aio.Pair() as one, aio.Pair() as other:
            await one.listen(address)
            await other.dial(address)
            await other.send(b"x")
            assert await one.recv() == b"x"
            await one.send(b"y")
            assert await other.recv_many(5) == [b"y"]

    run(main())


def test_bus(address: str) -> None:
    async def main() -> None:
        async with aio.Bus() as hub, aio.Bus() as one, aio.Bus() as other:
            await hub.listen(address)
            await one.dial(address)
            await other.dial(address)
            await until(lambda: len(hub.socket.pipes) == 2)
            assert await hub.send(b"both") == 2
            assert [await one.recv(), await other.recv()] == [b"both"] * 2
            await one.send_obj("on")
            assert await hub.forward(await hub.recv_msg()) == 1
            assert await other.recv_obj() == "on"
            with pytest.raises(ms.Timeout):
                await one.recv(0.01)

    run(main())


@pytest.mark.parametrize("resend", [None, 5.0])
def test_requests(address: str, resend: float | None) -> None:
    async def double(content: bytes) -> bytes:
        await asyncio.sleep(0.001)
        if content == b"raise":
            raise ValueError("as asked")
        return content * 2

    async def main() -> None:
        async with aio.Rep(double) as rep, aio.Req(resend=resend) as req:
            await rep.listen(address)
            rep.start()
            await req.dial(address)
            assert await req.request(b"x") == b"xx"
            many = await asyncio.gather(*(req.request(b"%d" % i) for i in range(500)))
            assert many == [b"%d" % i * 2 for i in range(500)]
            with pytest.raises(ms.RemoteError, match="ValueError: as asked"):
                await req.request(b"raise")
            task = req.request_async(b"y")
            assert await task == b"yy"
            assert not req._answers._askers

    run(main())


def test_requests_cancelled_and_late(address: str) -> None:
    async def main() -> None:
        async with aio.Rep() as rep, aio.Req() as req:
            await rep.listen(address)
            await req.dial(address)
            with pytest.raises(ms.Timeout, match="no answer"):
                await req.request(b"slow", 0.01)
            task = req.request_async(b"cancelled")
            late = await rep.recv()
            cancelled = await rep.recv()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await late.reply(b"late")
            await cancelled.reply(b"cancelled")
            task = req.request_async(b"good")
            await (await rep.recv()).reply(b"reply")
            assert await task == b"reply"
            task = req.request_async(b"bad")
            await (await rep.recv()).fail("no")
            with pytest.raises(ms.RemoteError, match="no"):
                await task

    run(main())


def test_closing_ends_requests(address: str) -> None:
    async def main() -> None:
        async with aio.Rep() as rep, aio.Req() as req:
            await rep.listen(address)
            await req.dial(address)
            tasks = [req.request_async(b"x") for _ in range(10)]
            await rep.recv()
            await req.close()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, ms.Closed)

    run(main())


def test_serve_ends_with_close(address: str) -> None:
    async def main() -> None:
        async with aio.Rep(lambda content: content, workers=3) as rep, aio.Req() as req:
            await rep.listen(address)
            await req.dial(address)
            serving = asyncio.ensure_future(rep.serve())
            assert await req.request(b"x") == b"x"
            await rep.close()
            await serving
        async with aio.Rep() as by_hand:
            with pytest.raises(ms.BadOption):
                by_hand.start()

    run(main())


def _serve(address: str) -> None:
    async def main() -> None:
        async with aio.Rep(lambda content: b"%d" % os.getpid()) as rep:
            await rep.dial(address, dial_async=True)
            await rep.serve()

    asyncio.run(main())


def test_resent_when_the_peer_dies(ipc: str, processes: Processes) -> None:
    async def main() -> None:
        async with aio.Req(resend=60.0) as req:
            await req.listen(ipc)
            first = processes.start(_hold, ipc)
            await until(lambda: req.socket.pipes)
            task = req.request_async(b"x")
            await until(lambda: req.socket.stats()["sent"])
            second = processes.start(_serve, ipc)
            await until(lambda: len(req.socket.pipes) == 2)
            first.kill()
            assert await task == b"%d" % second.pid

    run(main())


def _hold(address: str) -> None:
    with protocol.Rep() as rep:
        rep.dial(address)
        for request in rep:
            assert request.content


@pytest.mark.parametrize("slow", ["drop newest", "drop oldest", "block"])
def test_publications(address: str, slow: str) -> None:
    async def main() -> None:
        async with aio.Pub(slow=slow) as pub, aio.Sub(["a"]) as some, aio.Sub([b""]) as everything:
            await pub.listen(address)
            await some.dial(address)
            await everything.dial(address)
            await pub.wait_subscribers(2, DEADLINE)
            assert await pub.send("apple", b"1") == 2
            assert await pub.send("pear", b"2") == 1
            assert await some.recv() == (b"apple", b"1")
            assert await everything.recv_many(1) == [(b"apple", b"1")]
            async for publication in everything:
                assert publication == (b"pear", b"2")
                break
            await some.subscribe("p")
            await until(lambda: any(one.topics == {b"a", b"p"} for one in pub.subscribers))
            await pub.send("pear", b"3")
            assert await some.recv() == (b"pear", b"3")
            await some.unsubscribe("p")
            assert some.topics == {b"a"}
            with pytest.raises(ms.Timeout):
                await pub.wait_subscribers(3, 0.06)

    run(main())


@pytest.mark.parametrize("way", ["recv", "recv_many", "iterating"])
def test_publications_are_equal_to_others_in_sets_and_dicts(address: str, way: str) -> None:
    sent = [protocol.Publication(topic, b"%d" % i) for topic in (b"a", b"b") for i in range(5)] * 2

    async def taken(sub: aio.Sub) -> list[protocol.Publication]:
        if way == "recv":
            return [await sub.recv(DEADLINE)]
        if way == "recv_many":
            return await sub.recv_many(7, DEADLINE)
        async for publication in sub:
            return [publication]
        raise AssertionError

    async def main() -> None:
        async with aio.Pub() as pub, aio.Sub([b""]) as sub:
            await pub.listen(address)
            await sub.dial(address)
            await pub.wait_subscribers(1, DEADLINE)
            for publication in sent:
                await pub.send(*publication)
            got: list[protocol.Publication] = []
            while len(got) < len(sent):
                got += await taken(sub)
            assert got == sent
            assert list(map(hash, got)) == list(map(hash, sent))
            assert set(got) == set(sent)

    run(main())


@pytest.mark.local
def test_a_blocking_publisher(address: str) -> None:
    async def main() -> None:
        async with aio.Pub(slow="block") as pub, aio.Sub([""], recv_queue_size=1) as sub:
            await pub.listen(address)
            await sub.dial(address)
            await pub.wait_subscribers(1, DEADLINE)
            await pub.send("t", b"1")
            with pytest.raises(ms.Timeout):
                await pub.send("t", b"2", 0.01)
            assert pub.subscribers[0].lost == 1
            task = asyncio.ensure_future(pub.send("t", b"3"))
            assert [(await sub.recv()).content, (await sub.recv()).content] == [b"1", b"3"]
            assert await task == 1

    run(main())


def test_surveys(address: str) -> None:
    async def main() -> None:
        async with (
            aio.Surveyor() as surveyor,
            aio.Respondent(lambda content: content * 2) as quick,
            aio.Respondent(lambda content: None) as silent,
        ):
            await surveyor.listen(address)
            for respondent in (quick, silent):
                await respondent.dial(address)
                respondent.start()
            await until(lambda: len(surveyor.socket.pipes) == 2)
            assert [response async for response in surveyor.survey(b"x", 0.2)] == [b"xx"]
            both = [surveyor.survey(b"%d" % i, DEADLINE) for i in range(2)]
            assert [await survey.__anext__() for survey in both] == [b"00", b"11"]
            for survey in both:
                await survey.aclose()
            assert not surveyor._answers._askers

    run(main())


def test_a_switch_ends_with_either_socket(address: str) -> None:
    async def main() -> None:
        for which in range(2):
            sockets = [aio.Socket(), aio.Socket()]
            async with aio.switch(*sockets) as running:
                await sockets[which].close()
                await asyncio.wait_for(running.join(), DEADLINE)
                assert not sockets[1 - which].socket.closed
        async with aio.Pull() as pull, aio.Push() as push, aio.Push() as source, aio.Pull() as target:
            await pull.listen(address)
            await source.dial(address)
            await push.dial((await target.listen("inproc://target")).address)
            async with aio.switch(pull, push):
                await source.send(b"x")
                assert await target.recv() == b"x"

    run(main())


def test_a_question_that_comes_back_is_no_answer(address: str) -> None:
    async def main() -> None:
        hub = aio.Socket()
        async with aio.switch(hub, hub), aio.Req() as req, aio.Surveyor() as surveyor:
            await hub.listen(address)
            await req.dial(address)
            with pytest.raises(ms.Timeout):
                await req.request(b"x", 0.1)
            await surveyor.dial(address)
            assert [response async for response in surveyor.survey(b"?", 0.1)] == []

    run(main())


def test_no_handler_ends_its_respondent(address: str) -> None:
    async def handler(content: bytes) -> Any:
        return 7 if content == b"number" else content

    async def main() -> None:
        async with aio.Surveyor() as surveyor, aio.Respondent(handler, workers=1) as respondent:
            await surveyor.listen(address)
            await respondent.dial(address)
            respondent.start()
            await until(lambda: surveyor.socket.pipes)
            assert [response async for response in surveyor.survey(b"number", 0.05)] == []
            async for response in surveyor.survey(b"goes on", DEADLINE):
                assert response == b"goes on"
                break

    run(main())


def test_resending_keeps_no_timers(address: str) -> None:
    async def main() -> None:
        async with aio.Rep(lambda content: content) as rep, aio.Req(resend=1000.0) as req:
            await rep.listen(address)
            rep.start()
            await req.dial(address)
            await req.request(b"x")
            before = len(background()._timers)
            for _ in range(300):
                await req.request(b"x")
            assert len(background()._timers) < before + 100

    run(main())


def test_switch(address: str, folder: object) -> None:
    async def shout(msg: ms.Message, origin: aio.Socket) -> ms.Message | None:
        if msg.content == b"drop":
            return None
        return msg.with_content(bytes(msg.content[:4]) + bytes(msg.content[4:]).upper())  # after the number

    async def main() -> None:
        async with aio.Socket() as front, aio.Socket() as back, aio.Req() as req, aio.Rep(lambda c: c) as rep:
            await front.listen(address)
            await back.listen(f"ipc://{folder}/back")
            await req.dial(address)
            await rep.dial(f"ipc://{folder}/back")
            rep.start()
            async with aio.switch(front, back, shout) as running:
                body = b"x" * (1 << 20)
                assert await req.request(body) == body.upper()
                await req.socket.send(b"drop")
                await until(lambda: running.dropped == 1)
                assert running.forwarded == 2
            await running.join()

    run(main())
