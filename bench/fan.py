"""Fan-out and fan-in: one sender and several receivers, several senders and one receiver, each a process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from . import flow
from .measure import Job
from .peers import peers
from .plan import KIB, Cell, Layout, Settings

PART = "fan"
OUT, IN = "fan-out", "fan-in"
IN_TCP = "fan-in of 8 over tcp"

_SIZES = (64, 64 * KIB)


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    crowds = (
        (OUT, "ipc", 1, settings.workers),
        (IN, "ipc", settings.workers, 1),
        (IN_TCP, "tcp", 8, 1),
    )
    for kind, transport, senders, receivers in crowds:
        for size in sorted(set(_SIZES) & set(settings.sizes)):
            for peer in peers():
                if peer.fits(Layout(transport, size, "", senders, receivers)):
                    crowd = {"senders": senders, "receivers": receivers}
                    run = partial(flow.measure, peer, transport, size, settings, **crowd)
                    yield Job(Cell(PART, kind, transport, size), peer.side, run)
