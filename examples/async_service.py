"""An asyncio service: a store of keys and values that tells whoever wants to know of changes.

    python examples/async_service.py serve ipc://store
    python examples/async_service.py set ipc://store color blue
    python examples/async_service.py get ipc://store color
    python examples/async_service.py watch ipc://store col [--times N]

One loop serves requests and publishes changes; any number of clients, and no thread for any of them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import msgpack

import multisocket as ms
import multisocket.aio as aio


async def serve(address: str) -> None:
    values: dict[str, str] = {}
    changes = aio.Pub(slow="drop oldest")

    async def handle(content: bytes) -> bytes:
        what, key, *rest = msgpack.unpackb(content)
        if what == "get":
            return values[key].encode()  # an unknown key is the client's RemoteError
        values[key] = rest[0]
        await changes.send(key, rest[0].encode())
        return b""

    async with aio.Rep(handle) as store, changes:
        await store.listen(address)
        await changes.listen(f"{address}.changes")
        print("serving", flush=True)
        await store.serve()


async def request(address: str, *question: str) -> None:
    async with aio.Req() as req:
        await req.dial(address)
        reply = await req.request(msgpack.packb(question), 5.0)
    if question[0] == "get":
        print(reply.decode())


async def watch(address: str, prefix: str, times: int | None) -> None:
    async with aio.Sub([prefix]) as sub:
        await sub.dial(f"{address}.changes")
        print("watching", flush=True)
        async for key, value in sub:
            print(f"{key.decode()} = {value.decode()}", flush=True)
            if times is not None and (times := times - 1) == 0:
                return


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=["serve", "get", "set", "watch"])
    parser.add_argument("address")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--times", type=int, help="end after so many changes")
    options = parser.parse_args()
    needed = {"serve": 0, "get": 1, "set": 2, "watch": 1}[options.what]
    if len(options.rest) != needed:
        parser.error(f"{options.what} takes {needed} arguments after the address")
    work = {
        "serve": lambda: serve(options.address),
        "watch": lambda: watch(options.address, options.rest[0], options.times),
    }
    try:
        asyncio.run(work.get(options.what, lambda: request(options.address, options.what, *options.rest))())
    except ms.Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
