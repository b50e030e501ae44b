"""Programs as users write them. Type checkers must accept all of it, and find the types that stand here.

Nothing of this is run: the tests give it to mypy and to pyright.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import ssl
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import assert_type

import multisocket as ms
from multisocket import aio, protocol, transport
from multisocket.address import Address
from multisocket.pool import Executor, Pipeline, Pool, Run, Stage, StageError, StageStats, TaskTimeout, WorkerDied

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from multisocket.options import DialOptions, SocketOptions


# --- Sockets and messages ---


def sockets() -> None:
    with ms.Socket(recv_timeout=2, send_timeout=None, pipe_limit=5, send_best_effort=True) as sock:
        assert_type(sock, ms.Socket)
        listener = sock.listen("tcp://*:30001", no_delay=True, keep_alive_period=5.0)
        dialer = sock.dial("ipc://jobs.sock", reconnect=False, max_reconnect_time=3)
        assert_type(listener, ms.Listener)
        assert_type(dialer, ms.Dialer)
        assert_type(sock.connect("ipc://jobs.sock#listen"), ms.Listener | ms.Dialer)
        sock.send(b"bytes")
        sock.send(bytearray(5), timeout=1)
        sock.send(np.zeros(5).data, 0.5)
        assert_type(sock.send_all(memoryview(b"")), int)
        assert_type(sock.send_many([b"a", b"b"], timeout=None), int)
        assert_type(sock.recv(), bytes)
        assert_type(sock.recv_many(10, timeout=0), list[bytes])
        assert_type(sock.stats(), dict[str, int])
        assert_type(sock.pipes, list[ms.Pipe])


def secure(sock: ms.Socket) -> None:
    sock.listen("tls+tcp://*:1", certificate=Path("x.pem"), key="x.key", client_certificate="required", ca="ca.pem")
    sock.dial("wss://host:1", context=ssl.create_default_context(), path="/a", text=True)
    sock.listen("ws://*:1", origin_checker=lambda origin: origin.endswith(".example"))


def make(**options: Unpack[SocketOptions]) -> ms.Socket:
    options.setdefault("recv_timeout", 5)
    return ms.Socket(**options)


def connected(address: str, **options: Unpack[DialOptions]) -> ms.Socket:
    sock = make(send_ttl=3)
    sock.dial(address, **options)
    return sock


def messages(sock: ms.Socket, wants_copy: bool) -> None:
    msg = sock.recv_msg()
    assert_type(msg, ms.Message[bytes])
    text: str = msg.content.decode()
    first: int = msg.content[0]
    with sock.recv_msg(copy=False) as far:
        array = np.frombuffer(far.content, np.uint8)
        size: int = far.content.nbytes
    assert_type(msg.source, tuple[int, ...])
    assert_type(msg.pipe_id, int)
    sock.send_to(msg.source, text.upper().encode())
    sock.send_msg(msg.with_content(b"other"))
    sock.send_msg(ms.Message(b"", send_type=1, ttl=3))
    sock.send_msg(ms.Message(bytearray(3)))
    sock.send_msg(ms.Message())
    either = sock.recv_msg(copy=wants_copy)
    print(bytes(either.content), first, array, size)
    for one in sock.recv_msgs(5, copy=False):
        assert_type(one, ms.Message[memoryview])
    for came in sock:
        assert_type(came, ms.Message[bytes])
        any_message(came)


def any_message(msg: ms.Message) -> int:
    return len(msg.content)


def only_bytes(msg: ms.Message[bytes]) -> bytes:
    return msg.content.strip()


def raw(sock: ms.Socket) -> bytes:
    msg = sock.recv_msg()
    if msg.content is None:  # the peer has ended its side
        return b""
    return only_bytes(msg)


def objects(sock: ms.Socket) -> None:
    sock.send_obj({"a": [1, 2.5, None]})
    sock.send_obj(np.zeros(5), serializer="pickle", timeout=1)
    found: dict[str, int] = sock.recv_obj()
    print(found["a"])


def loans(sock: ms.Socket) -> None:
    with sock.loan(100) as loan:
        loan.buffer[:5] = b"12345"
        loan.send(timeout=1)
    assert_type(loan, ms.Loan)


def watched(sock: ms.Socket) -> None:
    def seen(what: str, pipe: ms.Pipe) -> None:
        print(what, pipe.id, pipe.peer_pid)

    sock.on_pipe = seen
    sock.negotiator = lambda pipe: pipe.peer_pid != 0


def failures(sock: ms.Socket) -> int:
    try:
        sock.send_all(b"")
    except ms.Timeout as error:
        return error.sent
    except (ms.Closed, ms.ContentTooLong, ms.BrokenPath):
        raise
    except ms.Error:
        ms.clean()
    return 0


# --- protocols ---


def protocols() -> None:
    protocol.Push(send_timeout=1).send(b"")
    for content in protocol.Pull():
        assert_type(content, bytes)
    assert_type(protocol.Pair(no_recv=True).recv(5), bytes)
    assert_type(protocol.Bus(send_best_effort=True).send(b""), int)
    with protocol.Req(resend=1.0, recv_queue_size=10) as req:
        assert_type(req.request(b"", timeout=None), bytes)
        reply: Future[bytes] = req.request_async(b"")
        print(reply.result())
    protocol.Rep(lambda content: content.upper(), workers=3)
    for request in protocol.Rep():
        assert_type(request, protocol.Request)
        request.reply(request.content)
    protocol.Pub(slow="drop oldest", backlog=10, recv_queue_size=1).send("topic", b"")
    for publication in protocol.Sub(["a", b"b"], recv_timeout=1):
        topic, content = publication
        assert_type(topic, bytes)
        assert_type(publication.content, bytes)
    for response in protocol.Surveyor().survey(b"?", deadline=1):
        assert_type(response, bytes)
    protocol.Respondent(lambda question: b"here" if question else None)
    stream = protocol.Stream(window=1 << 20, idle_time=5)
    with stream.connect(timeout=1) as opened:
        assert_type(opened, protocol.ByteStream)
        opened.write(b"")
    assert_type(stream.connect("ipc://x"), ms.Listener | ms.Dialer)


def middleware(msg: ms.Message, origin: ms.Socket) -> ms.Message | None:
    return msg.with_content(bytes(msg.content)) if origin.closed else None


def switches(front: ms.Socket, back: protocol.Rep) -> None:
    with protocol.switch(front, back, middleware) as running:
        assert_type(running.join(timeout=1), bool)
    protocol.switch(front, front, lambda msg, origin: msg if msg.content.nbytes < 10 else None)


# --- coroutines ---


async def coroutines() -> None:
    async with aio.Socket(recv_timeout=1) as sock:
        await sock.dial("ipc://x", dial_async=True)
        assert_type(await sock.recv(), bytes)
        assert_type(await sock.recv_msg(), ms.Message[bytes])
        assert_type(await sock.recv_msg(copy=False), ms.Message[memoryview])
        assert_type(await sock.recv_msgs(5), list[ms.Message[bytes]])
        async for msg in sock:
            await sock.send_to(msg.source, msg.content.upper())
    async with aio.Req(send_timeout=1) as req:
        assert_type(await asyncio.gather(req.request(b"a"), req.request(b"b")), tuple[bytes, bytes])
    async with aio.Sub("a", recv_queue_size=5) as sub:
        async for topic, content in sub:
            print(topic.decode(), content.decode())
    async with aio.Pub(slow="block") as pub:
        await pub.send("topic", b"")
    async for response in aio.Surveyor().survey(b"?"):
        assert_type(response, bytes)
    async for content in aio.Pull():
        await aio.Push().send(content)

    async def handle(content: bytes) -> bytes:
        return content

    aio.Rep(handle, workers=5)


# --- pools ---


def length(text: str) -> int:
    return len(text)


def power(base: int, exponent: int = 2, *, modulus: int | None = None) -> int:
    return int(pow(base, exponent, modulus))


def lines(text: str) -> Iterator[str]:
    yield from text.splitlines()


def root(number: int) -> float:
    return float(number**0.5)


def pools() -> None:
    with Pool(4, initializer=print, initargs=("a",), context="spawn", retries=1, task_timeout=5) as pool:
        assert_type(pool.apply(length, ("a",)), int)
        assert_type(pool.map(length, ["a", "b"]), list[int])
        assert_type(pool.starmap(power, [(2, 3), [4, 5]]), list[int])
        later = pool.map_async(length, ["a"], callback=lambda results: print(results[0] + 1))
        assert_type(later.get(timeout=1), list[int])
        one = pool.apply_async(power, (2,), {"modulus": 3}, callback=took, error_callback=print)
        assert_type(one.get(), int)
        assert_type(one.ready(), bool)
        for number in pool.imap_unordered(length, (text for text in "abc"), chunksize=2):
            assert_type(number, int)
        results = pool.imap(length, ["a"])
        assert_type(results.next(timeout=1), int)
        assert_type(list(results), list[int])
        assert_type(pool.map(int, ["1"]), list[int])
        pool.map(lambda text: text.upper(), ["a"])
        assert_type(pool.stats(), dict[str, float])
        pool.close()
        pool.join()
    Pool(context=multiprocessing.get_context("fork"))


def took(number: int) -> None:
    print(number + 1)


def executors() -> None:
    with Executor(4, max_tasks_per_child=10) as executor:
        future = executor.submit(power, 2, exponent=5)
        assert_type(future, Future[int])
        assert_type(list(executor.map(length, ["a", "b"], timeout=1, chunksize=5)), list[int])
        assert_type(list(executor.map(power, [1, 2], range(2))), list[int])
        assert_type(next(executor.map(max, [1], [2], [3])), int)
        generic(executor)
        for done in concurrent.futures.as_completed([future]):
            assert_type(done.result(), int)
        try:
            future.result(1)
        except WorkerDied as error:
            print(error.exitcode)
        except TaskTimeout:
            executor.terminate_workers()


def generic(executor: concurrent.futures.Executor) -> None:
    executor.submit(length, "a")


def pipelines(source: list[str]) -> None:
    for number in Pipeline(Stage(length, workers=4), Stage(root, ordered=False)).run(source):
        assert_type(number, float)
    assert_type(Pipeline(Stage(length), Stage(root)), Pipeline[str, float])
    assert_type(Pipeline(length, root), Pipeline[str, float])
    assert_type(Pipeline(lines, length, root, context="spawn"), Pipeline[str, float])
    assert_type(Pipeline(Stage(lines), Stage(length)).run(source, source, progress=True), Run[int])
    assert_type(Pipeline(Stage(lines), length, Stage(root), Stage(str), Stage(length), root), Pipeline[str, float])
    Pipeline(lines, length, str, length, str, length, str, length, root)
    assert_type(Stage(lines, retries=2), Stage[str, str])
    failing = Pipeline(Stage(length, on_error="yield"), Stage(str, on_error="skip", name="text"))
    with failing.run(source) as run:
        for result in run:
            if isinstance(result, StageError):
                print(result.stage, result.item)
            else:
                assert_type(result, str)
        assert_type(run.errors, list[StageError])
        assert_type(run.stats(), list[StageStats])
    with concurrent.futures.ThreadPoolExecutor() as executor:
        list(Pipeline(length).run(source, executor=executor))


def some_stage() -> Stage[str, int]:
    return Stage(length)


def built(stages: list[Stage[Any, Any]]) -> Pipeline[Any, Any]:
    return Pipeline(*stages)


# --- a transport of one's own ---


class Carrying(transport.Connection):
    def fileno(self) -> int:
        return 0

    def read(self, most: int) -> bytes | None:
        return None

    def write(self, data: memoryview) -> int:
        return len(data)

    def close(self) -> None: ...


class Waiting(transport.Listening):
    address = "my://place"

    def fileno(self) -> int:
        return 0

    def accept(self) -> Carrying | None:
        return None

    def close(self) -> None: ...


class Mine(transport.Transport):
    def listen(self, address: Address, options: object) -> Waiting:
        return Waiting()

    def dial(self, address: Address, options: object) -> Carrying:
        return Carrying()


transport.register("my", Mine())
