"""Sends so many messages of mixed sizes (the argument), and fails when this process or its arenas have grown."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import multisocket as ms
from multisocket import names


def state(*socks: ms.Socket) -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("RssAnon:")[2].split()[0])
    return {
        "resident KiB": resident,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings of shared memory": Path("/proc/self/maps").read_text().count("/dev/shm/"),
        "segments": sum(name.startswith(names.prefix_of(socks[0]._name)) for name in os.listdir("/dev/shm")),
        "used": sum(sock.stats()["arena_used"] for sock in socks),
    }


def main(messages: int) -> None:
    dice = random.Random(1)
    source = memoryview(dice.randbytes(1 << 20))
    with ms.Socket() as server, ms.Socket() as client:
        server.listen("inproc://mixed")
        client.dial("inproc://mixed")

        def exchange(n: int) -> None:
            for _ in range(n):
                size = dice.choice((10, 1000, 20_000, dice.randrange(100_000, 600_000)))
                way = dice.randrange(4)
                client.send(source[:size]) if way else client.send_all(source[:size])
                with server.recv_msg(5, copy=way < 2) as msg:
                    assert len(msg.content) == size
                    if way == 3:
                        server.send_msg(msg)
                        assert len(client.recv(5)) == size

        exchange(messages // 10)
        before = state(server, client)
        exchange(messages)
        after = state(server, client)
    print(before, after, sep="\n")
    grown = {what: n - before[what] for what, n in after.items() if n > before[what]}
    if grown.pop("resident KiB", 0) > 4096 or grown:
        raise SystemExit(f"grown: {grown}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
