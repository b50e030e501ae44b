"""Rate: how many messages a second one sender gets to one receiver, over sizes, ipc and inproc."""

from __future__ import annotations

from collections.abc import Iterator

from . import flow
from .crew import Metrics
from .measure import Job
from .peers import Peer, peers
from .plan import Cell, Layout, Settings

PART = "rate"
KIND = "one to one"


def jobs(settings: Settings) -> Iterator[Job]:
    """All that is to be measured."""
    for transport in ("ipc", "inproc"):
        for size in settings.sizes:
            for peer in peers():
                if peer.fits(Layout(transport, size, "")):
                    yield Job(Cell(PART, KIND, transport, size), peer.side, _Run(peer, transport, size, settings))


class _Run:
    def __init__(self, peer: Peer, transport: str, size: int, settings: Settings) -> None:
        self._args = peer, transport, size, settings

    def __call__(self) -> Metrics:
        return {"rate": flow.measure(*self._args)}
