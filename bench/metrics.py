"""What is measured, in which unit, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .plan import KIB, MIB


def size_text(size: int) -> str:
    """Bytes as ``64 B``, ``1 KiB``, ``16 MiB``; nothing for none."""
    if not size:
        return ""
    if size >= MIB and size % MIB == 0:
        return f"{size // MIB} MiB"
    if size >= KIB and size % KIB == 0:
        return f"{size // KIB} KiB"
    return f"{size} B"


def _count_text(value: float) -> str:
    for unit, text in ((1e6, " M"), (1e3, " k")):
        if value >= unit:
            return _three_digits(value / unit) + text
    return _three_digits(value)


def _time_text(value: float) -> str:
    for unit, text in ((1.0, " s"), (1e-3, " ms")):
        if value >= unit:
            return _three_digits(value / unit) + text
    return _three_digits(value / 1e-6) + " µs"


def _bytes_text(value: float) -> str:
    return _three_digits(value / KIB) + " KiB"


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


ratio_text = _three_digits


@dataclass(frozen=True)
class Metric:
    """One kind of number.

    :param title: what it is, for tables and plots, with the unit of what the results hold.
    :param text: writes one, with a fitting unit.
    :param more_is_better: or less.
    :param compared: whether ratios say something.
    """

    title: str
    text: Callable[[float], str]
    more_is_better: bool = False
    compared: bool = True


METRICS = {
    "rate": Metric("messages a second", _count_text, more_is_better=True),
    "tasks": Metric("tasks a second", _count_text, more_is_better=True),
    "schedule": Metric("time, as a multiple of the ideal schedule", _three_digits),
    "median": Metric("median time", _time_text),
    "p99": Metric("99th percentile", _time_text),
    "connect": Metric("connect", _time_text),
    "reply": Metric("send and reply", _time_text),
    "send_all": Metric("send to all", _time_text),
    "close": Metric("close", _time_text),
    "memory": Metric("memory", _bytes_text),
    "descriptors": Metric("descriptors", _three_digits, compared=False),
}
"""By the names that participants report: rates in messages or tasks a second, times in seconds, memory in bytes."""
