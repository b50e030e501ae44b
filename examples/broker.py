"""A broker: clients come to one address, workers to another, and neither needs to know of the other.

    python examples/broker.py tcp://*:7003 ipc://workers.sock

A request goes to the worker with the shortest queue; workers may come and go, on this machine or on others. What is
waiting for a worker that dies goes to another one.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections import Counter

import multisocket as ms
from multisocket.protocol import switch


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("front", help="where clients connect")
    parser.add_argument("back", help="where workers connect")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two lines about what is going on")
    options = parser.parse_args()

    counts: Counter[str] = Counter()

    def count(msg: ms.Message, origin: ms.Socket) -> ms.Message:
        counts["requests" if origin is front else "replies"] += 1
        return msg

    # A client that does not take its replies must not keep others from getting theirs.
    front, back = ms.Socket(send_best_effort=True), ms.Socket()
    print("clients:", front.listen(options.front).address, flush=True)
    print("workers:", back.listen(options.back).address, flush=True)
    with switch(front, back, count) as broker:
        try:
            while not broker.join(0):
                threading.Event().wait(options.every)
                print(
                    f"{len(front.pipes)} clients, {len(back.pipes)} workers, {counts['requests']} requests, "
                    f"{counts['replies']} replies, {broker.dropped} dropped",
                    flush=True,
                )
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
