"""A chat on a bus: what one types, all others read.

    python examples/chat.py --name Ada --listen tcp://*:7000
    python examples/chat.py --name Bob --dial tcp://localhost:7000

Anybody may listen and dial, several times too: who has several peers passes on what it hears, so all of a chain or a
star hear everything, and nobody what they have said themselves.
"""

from __future__ import annotations

import argparse
import sys
import threading

import multisocket as ms
from multisocket.protocol import Bus


def hear(bus: Bus) -> None:
    while True:
        try:
            msg = bus.recv_msg()
        except ms.Closed:
            return
        name, text = msg.content.decode(errors="replace").split("\0", 1)
        print(f"{name}: {text}", flush=True)
        bus.forward(msg)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--listen", action="append", default=[], metavar="ADDRESS")
    parser.add_argument("--dial", action="append", default=[], metavar="ADDRESS")
    options = parser.parse_args()
    with Bus(send_timeout=5.0) as bus:
        for address in options.listen:
            bus.listen(address)
        for address in options.dial:
            bus.dial(address)
        listener = threading.Thread(target=hear, args=(bus,))
        listener.start()
        print("type; Ctrl-D ends", file=sys.stderr, flush=True)
        for line in sys.stdin:
            bus.send(f"{options.name}\0{line.rstrip()}".encode())
    listener.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
