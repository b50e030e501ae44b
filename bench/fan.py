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

_SIZES = (64, 64 * KIB)


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    for kind, senders, receivers in ((OUT, 1, settings.workers), (IN, settings.workers, 1)):
        for size in sorted(set(_SIZES) & set(settings.sizes)):
            for peer in peers():
                if peer.fits(Layout("ipc", size, "", senders, receivers)):
                    crowd = {"senders": senders, "receivers": receivers}
                    run = partial(flow.measure, peer, "ipc", size, settings, **crowd)
                    yield Job(Cell(PART, kind, "ipc", size), peer.side, run)
