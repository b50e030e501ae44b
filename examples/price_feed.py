"""A price feed: one publisher, and subscribers in processes of their own that each want some of it.

    python examples/price_feed.py [--ticks N]

Each subscriber prints the last price it has heard of each symbol. One of them is slow: it loses ticks, and nobody else
does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time

from multisocket.protocol import Pub, Sub

SYMBOLS = ["metal.gold", "metal.silver", "metal.tin", "grain.wheat", "grain.rye", "grain.oats"]
DELAY = 0.005  # seconds that the slow one takes for each tick


def follow(address: str, name: str, topics: list[str], delay: float) -> None:
    last: dict[str, str] = {}
    ticks = 0
    # A short queue: whoever is slow has the old prices that are in it, and then new ones.
    with Sub([*topics, "end"], recv_queue_size=500) as sub:
        sub.dial(address)
        for topic, content in sub:
            if topic == b"end":
                break
            ticks += 1
            last[topic.decode()] = content.decode()
            if delay:
                time.sleep(delay)
    prices = ", ".join(f"{symbol} {price}" for symbol, price in sorted(last.items()))
    # At once with its end: the others write lines, too.
    print(f"{name}: {ticks} ticks; {prices}\n", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--ticks", type=int, default=10000)
    options = parser.parse_args()

    followers = [("metals", ["metal."], 0.0), ("all", [""], 0.0), ("slow", ["grain."], DELAY)]
    with Pub(slow="drop oldest", backlog=100) as pub:
        address = pub.listen(f"ipc://@price-feed-{os.getpid()}").address
        processes = [multiprocessing.Process(target=follow, args=(address, *follower)) for follower in followers]
        for process in processes:
            process.start()
        pub.wait_subscribers(len(followers))

        prices = dict.fromkeys(SYMBOLS, 100.0)
        for number in range(options.ticks):
            symbol = SYMBOLS[number % len(SYMBOLS)]
            prices[symbol] *= random.uniform(0.99, 1.01)
            pub.send(symbol, f"{prices[symbol]:.2f}".encode())
            if number % 10 == 0:
                time.sleep(0.001)
        print("lost by the slow one:", max(one.lost for one in pub.subscribers))
        print("published: " + ", ".join(f"{symbol} {prices[symbol]:.2f}" for symbol in sorted(SYMBOLS)), flush=True)

        # The end must come, also to who is slow: it is said again until all have gone.
        while pub.send("end", b""):
            time.sleep(0.01)
        for process in processes:
            process.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
