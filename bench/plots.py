"""The results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import fan, rate, roundtrip
from .measure import Results
from .metrics import METRICS, size_text
from .plan import Cell, Side

# Libraries by colour, their ways by line.
_COLOURS = {
    "multisocket": "tab:red",
    "pyzmq": "tab:blue",
    "pynng": "tab:green",
    "multiprocessing.Queue": "tab:gray",
    "multiprocessing.Pipe": "tab:olive",
}
_LINES = ("-", "--", ":")


def draw(results: Results, directory: Path) -> list[Path]:
    """Draws over sizes whatever was measured over sizes.

    :returns: the files.
    :raises ImportError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    # The same results make the same files.
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    directory.mkdir(parents=True, exist_ok=True)
    return [
        _draw_group(results, group, metric, directory)
        for part, metric in ((rate.PART, "rate"), (roundtrip.PART, "median"), (fan.PART, "rate"))
        for group in _groups(results.cells(part))
    ]


def _groups(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that differ in the size only; one size alone makes no line."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.kind, cell.transport), []).append(cell)
    return [group for group in groups.values() if len(group) > 1]


def _draw_group(results: Results, cells: list[Cell], metric: str, directory: Path) -> Path:
    import matplotlib.pyplot as plt

    first = cells[0]
    figure, axes = plt.subplots(figsize=(8, 5))
    ways: dict[str, int] = {}
    for side in sorted({side for cell in cells for side in results.sides(cell)}):
        line = ways.setdefault(side.library, 0)
        ways[side.library] += 1
        _draw_side(results, cells, side, metric, axes, _LINES[line % len(_LINES)])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([cell.size for cell in cells], [size_text(cell.size) for cell in cells])
    axes.set_xlabel("content")
    unit = "" if METRICS[metric].more_is_better else ", seconds"
    axes.set_ylabel(METRICS[metric].title + unit)
    axes.set_title(f"{first.part}: {first.kind}, {first.transport} (median; band: least and most)")
    axes.grid(True, alpha=0.3)
    axes.legend()
    path = directory / f"{first.part}-{first.kind.replace(' ', '-')}-{first.transport}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _draw_side(results: Results, cells: list[Cell], side: Side, metric: str, axes: Any, line: str) -> None:
    found = {cell.size: results.summary(cell, side, metric) for cell in cells}
    points = {size: summary for size, summary in found.items() if summary is not None}
    if not points:
        return
    sizes = list(points)
    medians = [summary.median for summary in points.values()]
    least = [summary.least for summary in points.values()]
    most = [summary.most for summary in points.values()]
    colour = _COLOURS.get(side.library)
    axes.plot(sizes, medians, line, color=colour, marker="o", label=str(side))
    axes.fill_between(sizes, least, most, color=colour, alpha=0.12)
