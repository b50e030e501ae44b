"""Port forwarding: a tcp port here is a tcp service there, over one connection between the two, encrypted if you like.

    python examples/port_forward.py out tcp://*:7002 --to tcp://localhost:5432        there
    python examples/port_forward.py in tcp://there:7002 --at tcp://localhost:5433     here

Then whoever connects to port 5433 here talks with the service at port 5432 there. With tls+tcp:// addresses (see the
guide) nobody in between can read it.
"""

from __future__ import annotations

import argparse
import sys
import threading

from multisocket.protocol import Stream, forward_in, forward_out


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("which", choices=["in", "out"])
    parser.add_argument("address", help="of the connection between the two: out listens there, in dials it")
    parser.add_argument("--at", help="where clients connect", metavar="ADDRESS")
    parser.add_argument("--to", help="where the server is", metavar="ADDRESS")
    options = parser.parse_args()
    if (options.which == "in") != bool(options.at) or (options.which == "out") != bool(options.to):
        parser.error("in needs --at, out needs --to")
    with Stream() as streams:
        if options.which == "out":
            print("listening at", streams.listen(options.address).address, flush=True)
            forwarding = forward_out(streams, options.to)
        else:
            streams.dial(options.address, dial_async=True)
            forwarding = forward_in(streams, options.at)
            print("forwarding from", forwarding.address, flush=True)
        with forwarding:
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
