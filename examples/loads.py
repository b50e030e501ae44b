"""A survey of machines' loads: who asks gets an answer of each machine that is up, within a second.

python examples/loads.py answer tcp://monitor:7001       on each machine
python examples/loads.py ask tcp://*:7001 [--times N]    on the one called monitor
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time

import msgpack

from multisocket.protocol import Respondent, Surveyor


def load(question: bytes) -> bytes:
    one, five, fifteen = os.getloadavg()
    told = {"machine": platform.node(), "processors": os.cpu_count(), "load": [one, five, fifteen]}
    return bytes(msgpack.packb(told))


def answer(address: str) -> None:
    with Respondent(load) as respondent:
        respondent.dial(address, dial_async=True)  # it may be up before the one who asks, and after
        respondent.serve()


def ask(address: str, times: int, machines: int) -> None:
    with Surveyor() as surveyor:
        surveyor.listen(address)
        while len(surveyor.socket.pipes) < machines:
            time.sleep(0.01)
        for _ in range(times):
            rows = sorted((row["machine"], row) for row in map(msgpack.unpackb, surveyor.survey(b"load?", 1.0)))
            for machine, row in rows:
                averages = "  ".join(f"{average:6.2f}" for average in row["load"])
                print(f"{machine:20} {row['processors']:4} processors  {averages}", flush=True)
            print(f"{len(rows)} machines answered", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=["ask", "answer"])
    parser.add_argument("address")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--machines", type=int, default=1, help="wait until so many are connected")
    options = parser.parse_args()
    try:
        if options.what == "answer":
            answer(options.address)
        else:
            ask(options.address, options.times, options.machines)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
