"""How far a pipeline is, for people: by rich or tqdm, if one is installed, otherwise in plain lines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

from .stage import StageStats

# Seconds between two plain lines.
_PLAIN = 2.0


class Display(Protocol):
    """Shows progress."""

    def __enter__(self) -> Any:
        """Begins."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Ends."""

    def update(self, results: int, stages: list[StageStats]) -> None:
        """So many results were taken, so the stages are doing."""


def display(total: int | None) -> Display:
    """The best that is installed.

    :param total: items that all sources have; None: nobody knows.
    """
    for kind in (Rich, Tqdm):
        try:
            return kind(total)
        except ImportError:
            continue
    return Plain(total)


def describe(stage: StageStats) -> str:
    """A stage in a few words."""
    failed = f", {stage.failed} failed" if stage.failed else ""
    return f"{stage.done} done{failed}, {stage.queued} queued, {stage.rate:.0f}/s, {stage.busy:4.0%} busy"


class Rich:
    """A bar for each stage."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._total = total
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
        )
        self._tasks: list[Any] = []

    def __enter__(self) -> Rich:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def update(self, results: int, stages: list[StageStats]) -> None:
        """See :class:`Display`."""
        if not self._tasks:
            self._tasks = [self._bars.add_task(stage.name, state="", total=None) for stage in stages]
        for task, stage in zip(self._tasks, stages, strict=True):
            # Of later stages only what has come so far is known: items may become many, or none.
            total = self._total if stage is stages[0] else stage.received
            self._bars.update(task, completed=stage.done, total=total or None, state=describe(stage))


class Tqdm:
    """One bar, of the first stage's items, that names the bottleneck."""

    def __init__(self, total: int | None) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="item", leave=True)

    def __enter__(self) -> Tqdm:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, results: int, stages: list[StageStats]) -> None:
        """See :class:`Display`."""
        busiest = max(stages, key=lambda stage: stage.busy)
        self._bar.set_postfix_str(f"{results} results; {busiest.name} {busiest.busy:.0%} busy", refresh=False)
        self._bar.update(stages[0].done - self._bar.n)


class Plain:
    """A line now and then."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._next = 0.0
        self._line = ""

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *error: object) -> None:
        self._print()

    def update(self, results: int, stages: list[StageStats]) -> None:
        """See :class:`Display`."""
        of = f" of {self._total}" if self._total is not None else ""
        states = "; ".join(f"{stage.name}: {describe(stage)}" for stage in stages)
        self._line = f"{stages[0].done}{of} items, {results} results. {states}"
        if time.monotonic() >= self._next:
            self._print()

    def _print(self) -> None:
        self._next = time.monotonic() + _PLAIN
        line, self._line = self._line, ""
        if line:
            print(line, file=sys.stderr)
