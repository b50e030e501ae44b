"""What multisocket wants to reach, as ratios over others on the same work in the same run."""

from __future__ import annotations

from dataclasses import dataclass

from . import coroutines, fan, pool, protocols, rate, roundtrip
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
    :param over: the library against which it is set.
    """

    what: str
    cell: Cell
    least: float
    variant: str = ""
    over: str = THEIRS

    def against(self, results: Results) -> Side | None:
        """The other's way that did best there."""
        return results.best(self.cell, self.over, self.cell.metric)

    def reached(self, results: Results) -> Summary | None:
        """What is set against the goal. None: not measured."""
        return self.ratio(results)

    def is_met(self, reached: Summary) -> bool:
        """Whether the median does."""
        return reached.median >= self.least

    @property
    def text(self) -> str:
        """The goal."""
        return f"≥ {self.least:g}"

    def ratio(self, results: Results) -> Summary | None:
        """What was reached. None: not measured."""
        theirs = self.against(results)
        if theirs is None:
            return None
        return results.ratio(self.cell, Side(OURS, self.variant), theirs, self.cell.metric)


@dataclass(frozen=True)
class Limit(Goal):
    """A value that shall not be more, whatever others reach."""

    def reached(self, results: Results) -> Summary | None:
        """See :class:`Goal`."""
        return results.summary(self.cell, Side(OURS, self.variant), self.cell.metric)

    def is_met(self, reached: Summary) -> bool:
        """See :class:`Goal`."""
        return reached.median <= self.least

    @property
    def text(self) -> str:
        """The goal."""
        return f"≤ {self.least:g}"


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

_POOL, _FUTURES, _JOBLIB = (side.library for side in (pool.POOL, pool.FUTURES, pool.LOKY))

POOL_GOALS = (
    Goal("trivial tasks one by one, `imap_unordered`", pool.ONE_BY_ONE, 8, over=_POOL),
    Goal("trivial tasks, `submit`", pool.SUBMIT, 8, over=_FUTURES),
    Goal("`map` of ints, default settings", pool.MAP_INTS, 1, over=_POOL),
    Goal("`map` of tuples, default settings", pool.MAP_TUPLES, 1, over=_POOL),
    Goal("10 MiB arrays there and back", pool.ARRAYS, 4, over=_POOL),
    Goal("10 MiB arrays there and back, `Executor`", pool.ARRAYS, 4, "Executor", _FUTURES),
    Goal("joblib, 10,000 trivial tasks", pool.JOBLIB[10_000], 2, over=_JOBLIB),
    Limit("uneven tasks, time over the ideal schedule", pool.UNEVEN, 1.1, over=_POOL),
)
