"""Mistakes that type checkers must refuse: each line with an ``ignore`` is one, and no other line is.

Nothing of this is run: the tests give it to mypy and to pyright, which complain of an ``ignore`` that is not needed.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from collections.abc import Iterator

import multisocket as ms
from multisocket import aio, protocol
from multisocket.pool import Executor, Pipeline, Pool, Stage


def sockets(sock: ms.Socket) -> None:
    ms.Socket(recv_timout=5)  # type: ignore[call-arg]
    ms.Socket(recv_timeout="5")  # type: ignore[arg-type]
    ms.Socket(5)  # type: ignore[call-arg]
    ms.Socket(send_stop_timeout=None)  # type: ignore[arg-type]
    sock.listen("tcp://*:1", nodelay=True)  # type: ignore[call-arg]
    sock.listen("tcp://*:1", reconnect=False)  # type: ignore[call-arg]
    sock.listen("tls+tcp://*:1", client_certificate="maybe")  # type: ignore[arg-type]
    sock.dial("ipc://x", reconnect="no")  # type: ignore[arg-type]
    sock.dial("ipc://x", min_reconect_time=1)  # type: ignore[call-arg]
    sock.dial(5)  # type: ignore[arg-type]
    sock.connect("ipc://x", reconnect=False)  # type: ignore[call-arg]
    sock.send("text")  # type: ignore[arg-type]
    sock.send({"an": "object"})  # type: ignore[arg-type]
    sock.send(b"", timeout="1")  # type: ignore[arg-type]
    sock.send(b"", copy=True)  # type: ignore[call-arg]
    sock.send_many(["a"])  # type: ignore[list-item]
    sock.send_to("1", b"")  # type: ignore[arg-type]
    sock.send_msg(b"")  # type: ignore[arg-type]
    sock.recv(10, 5)  # type: ignore[call-arg]
    sock.recv_many()  # type: ignore[call-arg]
    sock.recv().encode()  # type: ignore[attr-defined]
    sock.on_pipe = lambda pipe: None  # type: ignore[assignment]
    sock.stats()["received"].upper()  # type: ignore[attr-defined]
    for listener in [sock.listen("ipc://x")]:
        listener.stop()  # type: ignore[attr-defined]


def messages(sock: ms.Socket) -> None:
    sock.recv_msg().content.encode()  # type: ignore[union-attr]
    sock.recv_msg(copy=False).content.decode()  # type: ignore[union-attr]
    sock.recv_msg(timeout=0, copy=0)  # type: ignore[call-overload]
    sock.recv_msg().source.append(5)  # type: ignore[attr-defined]
    only_views(sock.recv_msg())  # type: ignore[arg-type]
    for msg in sock.recv_msgs(5):
        msg.contents  # type: ignore[attr-defined]
    ms.Message("text")  # type: ignore[call-overload]
    ms.Message(b"", ttl="5")  # type: ignore[call-overload]
    ms.Message(b"", source=5)  # type: ignore[call-overload]
    sock.recv_msg().ttl = 5  # type: ignore[misc]
    with sock.loan(5) as loan:
        loan.buffer = b""  # type: ignore[assignment, misc]


def only_views(msg: ms.Message[memoryview]) -> None: ...


def failures() -> None:
    ms.Timeout("too late").send  # type: ignore[attr-defined]


def protocols() -> None:
    protocol.Push(no_recv=True)  # type: ignore[call-arg]
    protocol.Pull(no_send=True)  # type: ignore[call-arg]
    protocol.Pair(pipe_limit=2)  # type: ignore[call-arg]
    protocol.Pub(slow="drop")  # type: ignore[arg-type]
    protocol.Pub(no_recv=True)  # type: ignore[call-arg]
    protocol.Sub(5)  # type: ignore[arg-type]
    protocol.Sub(["a"], no_send=True)  # type: ignore[call-arg]
    protocol.Push().recv()  # type: ignore[attr-defined]
    protocol.Pull().send(b"")  # type: ignore[attr-defined]
    protocol.Req(resend="1")  # type: ignore[arg-type]
    protocol.Req().request("text")  # type: ignore[arg-type]
    protocol.Rep(lambda content: content.decode())  # type: ignore[arg-type, return-value]
    protocol.Rep(workers="3")  # type: ignore[arg-type]
    protocol.Surveyor(window=5)  # type: ignore[call-arg]
    protocol.Respondent().reply(b"")  # type: ignore[attr-defined]
    protocol.Stream(windw=5)  # type: ignore[call-arg]
    protocol.Stream(send_best_effort=True)  # type: ignore[call-arg]
    protocol.Bus(recv_queue=5).send(b"")  # type: ignore[call-arg]
    protocol.switch(protocol.Rep(), protocol.Req(), lambda msg: msg)  # type: ignore[arg-type, misc]
    protocol.switch(protocol.Rep(), None)  # type: ignore[arg-type]


async def coroutines() -> None:
    aio.Socket(recv_timout=5)  # type: ignore[call-arg]
    await aio.Socket().listen("ipc://x", backlog=5)  # type: ignore[call-arg]
    await aio.Socket().send("text")  # type: ignore[arg-type]
    (await aio.Socket().recv()).encode()  # type: ignore[attr-defined]
    aio.Socket().recv().decode()  # type: ignore[attr-defined]
    aio.Push(no_recv=True)  # type: ignore[call-arg]
    aio.Pub(slow="never")  # type: ignore[arg-type]
    (await aio.Socket().recv_msg(copy=False)).content.decode()  # type: ignore[union-attr]
    await aio.Req().request(5)  # type: ignore[arg-type]
    for content in aio.Pull():  # type: ignore[attr-defined]
        pass


# --- pools ---


def length(text: str) -> int:
    return len(text)


def root(number: int) -> float:
    return float(number**0.5)


def lines(text: str) -> Iterator[str]:
    yield from text.splitlines()


def pools(pool: Pool) -> None:
    Pool(proceses=4)  # type: ignore[call-arg]
    Pool("4")  # type: ignore[arg-type]
    Pool(context=5)  # type: ignore[arg-type]
    Pool(task_timeout="1")  # type: ignore[arg-type]
    pool.map(length, [1, 2])  # type: ignore[arg-type]
    pool.map(length, ["a"])[0].upper()  # type: ignore[attr-defined]
    pool.map_async(length, ["a"]).get().get()  # type: ignore[attr-defined]
    pool.map_async(length, ["a"], callback=took)  # type: ignore[arg-type]
    pool.apply(length, ("a",)).upper()  # type: ignore[attr-defined]
    pool.apply_async(length, ("a",), callback=took)  # type: ignore[misc]
    pool.apply_async(length, ("a",)).get(timeout="1")  # type: ignore[arg-type]
    pool.starmap(length, ["a", 5])  # type: ignore[list-item]
    for number in pool.imap(length, ["a"]):
        number.upper()  # type: ignore[attr-defined]
    pool.imap_unordered(length, [b"a"])  # type: ignore[arg-type]


def took(text: str) -> None: ...


def executors(executor: Executor) -> None:
    Executor(max_worker=4)  # type: ignore[call-arg]
    executor.submit(length, 5)  # type: ignore[arg-type]
    executor.submit(length)  # type: ignore[call-arg]
    executor.submit(length, text="a", other=1)  # type: ignore[call-arg]
    executor.submit(length, "a").result().upper()  # type: ignore[attr-defined]
    executor.map(length, [1])  # type: ignore[arg-type]
    executor.map(root, [1], [2])  # type: ignore[arg-type]
    next(executor.map(root, [1])).upper()  # type: ignore[attr-defined]


def pipelines() -> None:
    Pipeline()  # type: ignore[call-overload]
    Pipeline(length, Stage(length))  # type: ignore[misc]
    Pipeline(Stage(length), Stage(lines))  # type: ignore[misc]
    Pipeline(Stage(lines), Stage(root))  # type: ignore[misc]
    Pipeline(Stage(length, on_error="yeild"))  # type: ignore[call-overload]
    Stage(length, worker=4)  # type: ignore[call-overload]
    Stage(5)  # type: ignore[call-overload]
    Pipeline(length, context=5)  # type: ignore[call-overload]
    Pipeline(Stage(length)).run([1, 2])  # type: ignore[list-item]
    Pipeline(Stage(length)).run("a", progres=True)  # type: ignore[call-arg]
    next(Pipeline(Stage(length), Stage(root)).run(["a"])).upper()  # type: ignore[attr-defined]
    for result in Pipeline(Stage(length, on_error="yield")).run(["a"]):
        print(result + 1)  # type: ignore[operator]
