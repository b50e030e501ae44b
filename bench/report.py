"""The results as a page: the machine and versions, the goals, and tables of everything."""

from __future__ import annotations

import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import coroutines, fan, pool, protocols, rate, roundtrip, scale
from .goals import GOALS, POOL_GOALS, Goal, Limit
from .measure import Results, Summary
from .metrics import METRICS, ratio_text, size_text
from .peers import OURS, THEIRS, async_peers, missing, peers, publish_peers, request_peers, versions, window_peers
from .plan import Cell, Settings, Side

_TITLES = {
    rate.PART: "Rate",
    roundtrip.PART: "Round trip",
    fan.PART: "Fan-out and fan-in",
    protocols.PART: "Protocols",
    coroutines.PART: "asyncio",
    pool.PART: "Pools",
    scale.PART: "Connection scale",
}

_WAYS = (peers(), request_peers(), window_peers(), publish_peers(), async_peers())
_ORDER = list(dict.fromkeys([*(way.side for ways in _WAYS for way in ways), *pool.SIDES]))

_NOTES = {
    rate.PART: """\
Messages a second from one sender to one receiver: over ipc and tcp two processes, over inproc two threads of one
process. The receiver measures, after a warm-up.

*multisocket batches*: `send_many` and `recv_many`; no other library has batches. *pyzmq*: PUSH and PULL.
*copy=False* (from 64 KiB, where pyzmq begins to avoid copies): the receiver gets a `zmq.Frame` instead of
bytes; over inproc not even the memory is another one, as only a reference goes across. *pynng*: Push0 and
Pull0, or Pair0, which can buffer on the receiving side. *multiprocessing* is made for processes, so it is
not in inproc.
""",
    roundtrip.PART: f"""\
A message there and back, as the client measures it. *busy*: the next one follows at once. *idle*: the
client sleeps {roundtrip.IDLE_SECONDS * 1000:g} ms before each, so that both sides are asleep when it sends.
pyzmq: PAIR, or REQ and REP. pynng: Pair0. Median and 99th percentile are those within a round; shown is the
median round.
""",
    fan.PART: """\
Messages a second of all receivers together, each message to one of them; every sender and receiver is a
process. *multisocket shared*: the receivers are workers that share one Socket. *multiprocessing.Pipe*: one
for each process, in turn.
""",
    protocols.PART: f"""\
Every participant is a process. *Request and reply*: one at a time, as the one who asks measures it; `Req.request`, and
`for request in rep: request.reply(request.content)`. *{protocols.OUTSTANDING} requests outstanding*: replies a second;
for each that has come, the next request is sent; `Req.request_async`. *Publications to all*: a second, until all
subscribers have heard the last one. `Pub` with `slow="block"` waits for those that have no room. *pyzmq*: PUB does that
with XPUB_NODROP, or it waits for acknowledgements before it reaches its high water mark. That nothing was lost is
checked.
""",
    coroutines.PART: """\
Round trips with both sides busy, and messages a second from one sender to one receiver: two processes, in each a
coroutine in the event loop of the standard library. `multisocket.aio.Socket`; `zmq.asyncio` with PAIR, or REQ and REP,
and with PUSH and PULL.
""",
    pool.PART: f"""\
Tasks a second of {pool.WORKERS} workers, started by fork. *One by one*: `imap_unordered` with chunksize 1; *submit*:
all at once, then each result; these, *map* and *joblib* call a function that returns its argument. *Arrays*: a NumPy
array goes to a worker, which gives back another one of the same size; *multisocket* and *multiprocessing.Pool*:
`imap_unordered`, the others: `submit`, four at a time. *joblib*: `Parallel(n_jobs={pool.WORKERS})(delayed(f)(i) for i
in range(n))` with its backend loky, and with ours; joblib's own work is the same for both, and the larger part of long
calls. *Uneven*: 160 short tasks, 36 ten times and 4 fifty times as long, in random order; the time of `map` with
default settings, divided by that of all tasks one after the other by the number of workers. How long those take that
compute depends on how free the processors are.
""",
    scale.PART: f"""\
Client sockets in one process, connected over inproc to one server; all in one thread. Each client sends 64
B and gets a reply, {scale.TURNS} times; then the server sends to all, {scale.TURNS} times. *connect* and
*close* are times per client, *send and reply* per exchange, *send to all* per client that it reached.
*memory* and *descriptors* are what the process has more of, per client. pyzmq: DEALER and ROUTER; pynng:
Pair1, polyamorous. Both send to all one by one.
""",
}


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Cell
    metric: str


def page(results: Results, settings: Settings, seconds: float) -> str:
    """The whole page, in Markdown.

    :param seconds: that the run has taken.
    """
    return "\n".join(
        [
            "# Benchmark results",
            "",
            "Written by `python -m bench`. The sides of each comparison run in turn, in one run. A ratio",
            f"says how many times better {OURS} does; it is taken within each round. Given are the median",
            "of the rounds and, in parentheses, the least and the most.",
            "",
            *_machine(settings, seconds),
            "",
            goals(results),
            *itertools.chain.from_iterable(_part(results, part) for part in _TITLES if results.cells(part)),
        ]
    )


def goals(results: Results) -> str:
    """The goals, and whether they are reached."""
    lines = [f"## Goals: {OURS} over {THEIRS}, over ipc where nothing else is said, each side a process", ""]
    rows = [[goal.what, goal.text, *_reached(goal, results)] for goal in GOALS]
    lines += _table(["", "goal", "ratio", "", f"{THEIRS} uses"], rows)
    lines += ["", f"## Goals of pools: {OURS} over others, {pool.WORKERS} workers", ""]
    rows = [[goal.what, goal.text, *_reached(goal, results)] for goal in POOL_GOALS]
    lines += _table(["", "goal", "reached", "", "over"], rows)
    return "\n".join([*lines, ""])


def _reached(goal: Goal, results: Results) -> list[str]:
    theirs, reached = goal.against(results), goal.reached(results)
    if theirs is None or reached is None:
        return ["not measured", "", ""]
    return [_spread(reached, ratio_text), "reached" if goal.is_met(reached) else "**short**", _way(goal, theirs)]


def _way(goal: Goal, theirs: Side) -> str:
    if isinstance(goal, Limit):
        return ""
    if goal.over != THEIRS:
        return str(theirs)
    return theirs.variant or ("PAIR" if goal.cell.metric == "median" else "PUSH/PULL")


# --- the machine ---


def _machine(settings: Settings, seconds: float) -> Iterator[str]:
    yield f"- {_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    yield f"- {platform.python_implementation()} {platform.python_version()}{_gil()}"
    yield "- " + ", ".join(f"{library} {version}" for library, version in versions.items())
    for library, reason in missing.items():
        yield f"- left out: {library} ({reason})"
    yield (
        f"- {_times(settings.rounds)}; each side of each cell runs {settings.window:g} s after a warm-up of "
        f"{settings.warm_up:g} s; {seconds / 60:.1f} minutes in all"
    )
    yield f"- {time.strftime('%Y-%m-%d')}; load average at the end: {os.getloadavg()[0]:.1f}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            lines = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0] if lines else platform.machine()


def _gil() -> str:
    enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    return "" if enabled else ", free-threaded"


# --- a part ---


def _part(results: Results, part: str) -> Iterator[str]:
    yield f"## {_TITLES[part]}"
    yield ""
    yield _NOTES[part]
    cells = results.cells(part)
    if part == scale.PART:
        columns = [_Column(METRICS[metric].title, cells[0], metric) for metric in scale.METRICS]
        yield from _block(results, f"{cells[0].kind}", columns)
        return
    for kind, transport in dict.fromkeys((cell.kind, cell.transport) for cell in cells):
        group = [cell for cell in cells if (cell.kind, cell.transport) == (kind, transport)]
        for metric in ("median", "p99") if group[0].metric == "median" else (group[0].metric,):
            columns = [_Column(size_text(cell.size), cell, metric) for cell in group]
            yield from _block(results, f"{kind}, {transport}: {METRICS[metric].title}", columns)


def _block(results: Results, title: str, columns: Sequence[_Column]) -> Iterator[str]:
    """A table of values, one of ratios, and why something failed."""
    sides = sorted({side for column in columns for side in results.sides(column.cell)}, key=_ORDER.index)
    heads = [column.head for column in columns]
    yield f"### {title[:1].upper()}{title[1:]}"
    yield ""
    yield from _table(["", *heads], [_values(results, side, columns) for side in sides])
    yield ""
    others = [side for side in sides if side.library != OURS]
    if any(side.library == OURS for side in sides) and others:
        yield f"{OURS} over the others:"
        yield ""
        compared = [column for column in columns if METRICS[column.metric].compared]
        rows = [_ratios(results, side, compared) for side in others]
        yield from _table(["", *(column.head for column in compared)], rows)
        yield ""
    yield from _failures(results, sides, columns)


def _values(results: Results, side: Side, columns: Sequence[_Column]) -> list[str]:
    row = [str(side)]
    for column in columns:
        summary = results.summary(column.cell, side, column.metric)
        if summary is not None:
            row.append(_spread(summary, METRICS[column.metric].text))
        else:
            row.append("failed" if results.failures(column.cell, side) else "")
    return row


def _ratios(results: Results, side: Side, columns: Sequence[_Column]) -> list[str]:
    row = [str(side)]
    for column in columns:
        ratio = results.ratio(column.cell, Side(OURS), side, column.metric)
        row.append("" if ratio is None else _spread(ratio, ratio_text))
    return row


def _failures(results: Results, sides: Sequence[Side], columns: Sequence[_Column]) -> Iterator[str]:
    for cell, side in itertools.product(dict.fromkeys(column.cell for column in columns), sides):
        failures = results.failures(cell, side)
        if failures:
            what = ", ".join(filter(None, (str(side), size_text(cell.size))))
            yield f"- {what}: failed in {_times(len(failures))}: {failures[0]}"
            yield ""


def _spread(summary: Summary, text: Callable[[float], str]) -> str:
    if summary.least == summary.most:
        return text(summary.median)
    return f"{text(summary.median)} ({text(summary.least)}-{text(summary.most)})"


def _times(rounds: int) -> str:
    return "1 round" if rounds == 1 else f"{rounds} rounds"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
