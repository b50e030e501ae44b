"""What multisocket wants to reach, as ratios over pyzmq on the same work in the same run."""

from __future__ import annotations

from dataclasses import dataclass

from . import coroutines, fan, protocols, rate, roundtrip
from .measure import Results, Summary
from .peers import OURS, THEIRS
from .plan import KIB, MIB, Cell, Side


@dataclass(frozen=True)
class Goal:
    """One ratio to reach.

    :param what: is done, in words.
    :param cell: where it is measured.
    :param least: the ratio to reach.
    :param variant: of multisocket.
    """

    what: str
    cell: Cell
    least: float
    variant: str = ""

    def against(self, results: Results) -> Side | None:
        """The way of pyzmq that did best there."""
        return results.best(self.cell, THEIRS, self.cell.metric)

    def ratio(self, results: Results) -> Summary | None:
        """What was reached. None: not measured."""
        theirs = self.against(results)
        if theirs is None:
            return None
        return results.ratio(self.cell, Side(OURS, self.variant), theirs, self.cell.metric)


def _rate(size: int, transport: str = "ipc") -> Cell:
    return Cell(rate.PART, rate.KIND, transport, size)


def _trip(kind: str, transport: str = "ipc") -> Cell:
    return Cell(roundtrip.PART, kind, transport, 64, roundtrip.METRIC)


GOALS = (
    Goal("64 B, `send`/`recv`", _rate(64), 5),
    Goal("1 KiB, `send`/`recv`", _rate(KIB), 5),
    Goal(
        "64 B, `send_many`/`recv_many` (pyzmq: one message a call, it has no batches)",
        _rate(64),
        15,
        "batches",
    ),
    Goal("64 KiB, `send`/`recv`", _rate(64 * KIB), 6),
    Goal("1 MiB, `send`/`recv`", _rate(MIB), 6),
    Goal("64 B round trip, both sides busy", _trip(roundtrip.BUSY), 50),
    Goal("64 B round trip, both sides idle in between", _trip(roundtrip.IDLE), 1.5),
    Goal("64 B request and reply, `Req.request`, busy", protocols.REQUEST, 20),
    Goal(f"64 B, {protocols.OUTSTANDING} requests outstanding, `Req.request_async`", protocols.WINDOW, 2),
    Goal("64 B publications to 4 subscribers, nothing lost", protocols.PUBLISH, 3),
    Goal("asyncio: 64 B round trip, both sides busy", coroutines.TRIP, 2),
    Goal("asyncio: 64 B, `send`/`recv`", coroutines.RATE, 2),
    Goal("tcp: 64 B, `send`/`recv`", _rate(64, "tcp"), 1.5),
    Goal("tcp: 1 KiB, `send`/`recv`", _rate(KIB, "tcp"), 1.5),
    Goal("tcp: 1 MiB, `send`/`recv`", _rate(MIB, "tcp"), 1.2),
    Goal("tcp: 64 B round trip, both sides busy", _trip(roundtrip.BUSY, "tcp"), 1.2),
    Goal("tcp: 64 B round trip, both sides idle in between", _trip(roundtrip.IDLE, "tcp"), 1.2),
    Goal("tcp: 64 B from 8 processes to one", Cell(fan.PART, fan.IN_TCP, "tcp", 64), 1.5),
)
