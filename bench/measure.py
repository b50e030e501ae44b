"""Runs all sides of all cells in turn, several times, and draws medians, spreads and ratios from it.

A shared machine is faster in one minute than in the next. So the sides of a cell run right after each
other, in another order each round, and a ratio is between two runs of the same round.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .crew import CellFailed, Metrics
from .metrics import METRICS, size_text
from .plan import Cell, Side

# A side that fails this often in a cell is not tried there again: it may cost the whole deadline each time.
_MOST_FAILURES = 2


@dataclass(frozen=True)
class Job:
    """One side of one cell.

    :param run: measures once, or raises CellFailed.
    :param most_rounds: in which it takes part.
    """

    cell: Cell
    side: Side
    run: Callable[[], Metrics]
    most_rounds: int = sys.maxsize


@dataclass(frozen=True)
class Summary:
    """Of several rounds.

    :param median: in the unit of what is summarized.
    :param least: of all rounds.
    :param most: of all rounds.
    """

    median: float
    least: float
    most: float


@dataclass
class Results:
    """What came of each round: metrics, or why there are none."""

    _rounds: dict[tuple[Cell, Side], list[Metrics | str]] = field(default_factory=dict)

    def add(self, job: Job, outcome: Metrics | str) -> None:
        self._rounds.setdefault((job.cell, job.side), []).append(outcome)

    def cells(self, part: str) -> list[Cell]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(cell for cell, _ in self._rounds if cell.part == part))

    def sides(self, cell: Cell) -> list[Side]:
        return [side for one, side in self._rounds if one == cell]

    def failures(self, cell: Cell, side: Side) -> list[str]:
        return [outcome for outcome in self._rounds.get((cell, side), []) if isinstance(outcome, str)]

    def summary(self, cell: Cell, side: Side, metric: str) -> Summary | None:
        """None: no round gave it."""
        return _summarize(value for value in self._values(cell, side, metric) if value is not None)

    def ratio(self, cell: Cell, ours: Side, theirs: Side, metric: str) -> Summary | None:
        """How many times better ours is, round by round."""
        if not METRICS[metric].more_is_better:
            ours, theirs = theirs, ours
        pairs = zip(self._values(cell, ours, metric), self._values(cell, theirs, metric), strict=False)
        return _summarize(one / other for one, other in pairs if one is not None and other)

    def best(self, cell: Cell, library: str, metric: str) -> Side | None:
        """The library's way that did best there, by the median."""
        found = {
            side: summary.median
            for side in self.sides(cell)
            if side.library == library and (summary := self.summary(cell, side, metric)) is not None
        }
        if not found:
            return None
        pick = max if METRICS[metric].more_is_better else min
        return pick(found, key=found.__getitem__)

    def _values(self, cell: Cell, side: Side, metric: str) -> list[float | None]:
        """One a round."""
        rounds = self._rounds.get((cell, side), [])
        return [None if isinstance(outcome, str) else outcome.get(metric) for outcome in rounds]


def run_rounds(jobs: Iterable[Job], rounds: int, tell: Callable[[str], None]) -> Results:
    """Runs everything so many times.

    :param tell: called with a line for each run.
    """
    results = Results()
    cells: dict[Cell, list[Job]] = {}
    for job in jobs:
        cells.setdefault(job.cell, []).append(job)
    for number in range(rounds):
        for job in _in_turn(cells, number):
            cell = f"{job.cell.part} {job.cell.kind} {job.cell.transport} {size_text(job.cell.size)}".strip()
            tell(f"round {number + 1}/{rounds}, {cell}, {job.side}: {_run_once(job, results)}")
    return results


def _in_turn(cells: dict[Cell, list[Job]], number: int) -> Iterator[Job]:
    for jobs in cells.values():
        first = number % len(jobs)
        yield from (job for job in jobs[first:] + jobs[:first] if number < job.most_rounds)


def _run_once(job: Job, results: Results) -> str:
    if len(results.failures(job.cell, job.side)) >= _MOST_FAILURES:
        results.add(job, "not tried again")
        return "not tried again"
    try:
        metrics = job.run()
    except (CellFailed, OSError) as error:
        results.add(job, str(error))
        return f"failed: {error}"
    results.add(job, metrics)
    return ", ".join(f"{name} {METRICS[name].text(value)}" for name, value in metrics.items())


def _summarize(values: Iterable[float]) -> Summary | None:
    found = list(values)
    if not found:
        return None
    return Summary(statistics.median(found), min(found), max(found))
