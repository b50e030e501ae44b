"""Results as a page: versions, the goals, and a table of everything."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import fan, rate, roundtrip, scale
from .goals import GOALS, Goal
from .measure import Results, Summary
from .peers import OURS, missing, versions
from .plan import KIB, MIB, Cell, Settings, Side

_NOTES = {
    rate.PART: """\
Messages a second, one sender to one receiver: over ipc two processes, over inproc two threads of one process. The
receiver measures, after a warm-up. *batches* are `send_many` and `recv_many`; no other library has batches. pyzmq uses
PUSH and PULL; with *copy=False* (from 64 KiB) the receiver gets a `zmq.Frame` instead of bytes, and over inproc not even
the memory is another one: only a reference goes across. pynng uses Push0 and Pull0, or Pair0, which can buffer on the
receiving side.
""",
    roundtrip.PART: f"""\
A message there and back, as the client measures it. *busy*: at once again. *idle*: the client sleeps
{roundtrip.IDLE_SECONDS * 1000:g} ms before each, so that both sides are asleep. pyzmq uses PAIR, or REQ and REP; pynng
Pair0. Medians and 99th percentiles are those of a round; shown is the median round.
""",
    fan.PART: """\
Messages a second of all receivers together; every sender and receiver is a process. *shared*: the receivers are workers
that share one Socket. multiprocessing.Pipe has a pipe for each process, in turn.
""",
    scale.PART: f"""\
Client sockets in one process, connected over inproc to one server, everything in one thread. Each client sends 64 B and
gets a reply, {scale.TURNS} times; then the server sends to all, {scale.TURNS} times. Times are per client and turn (*connect* and *close*
per client); *memory* is what the process grew by, per client. pyzmq uses DEALER and ROUTER, pynng polyamorous Pair1:
they send to all one by one.
""",
}
