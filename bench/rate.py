"""Rate: how many messages a second one sender gets to one receiver, over sizes, ipc, tcp and inproc."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from . import flow
from .measure import Job
from .peers import peers
from .plan import Cell, Layout, Settings

PART = "rate"
KIND = "one to one"


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    for transport in ("ipc", "tcp", "inproc"):
        for size in settings.sizes:
            for peer in peers():
                if peer.fits(Layout(transport, size, "")):
                    run = partial(flow.measure, peer, transport, size, settings)
                    yield Job(Cell(PART, KIND, transport, size), peer.side, run)
