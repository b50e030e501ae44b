"""The command line: ``python -m bench``."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from pathlib import Path

from . import coroutines, fan, plots, pool, protocols, rate, report, roundtrip, scale
from .measure import Results, run_rounds
from .peers import missing
from .plan import KIB, MIB, Settings

_PARTS = {part.PART: part for part in (rate, roundtrip, fan, protocols, coroutines, pool, scale)}

_QUICK = Settings(
    rounds=1,
    warm_up=0.03,
    window=0.1,
    deadline=5.0,
    sizes=(64, KIB, 64 * KIB, MIB),
    clients=1000,
)


def main() -> None:
    """Measures, prints, and writes a whole run down."""
    options = _parse()
    settings = _settings(options)
    for library, reason in missing.items():
        _tell(f"{library} is left out: {reason}")
    begin = time.monotonic()
    jobs = itertools.chain.from_iterable(_PARTS[part].jobs(settings) for part in options.only)
    results = run_rounds(jobs, settings.rounds, _tell)
    page = report.page(results, settings, time.monotonic() - begin)
    output = _output(options)
    if output is None:
        print(page)
        return
    print(report.goals(results))
    _write(results, page, output)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compares multisocket with pyzmq, pynng, multiprocessing and joblib. A whole run takes about "
        "12 minutes and writes bench/RESULTS.md and bench/plots; with --quick or --only it prints instead.",
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: one short round, fewer sizes")
    every = ",".join(_PARTS)
    parser.add_argument("--only", type=_parts, default=list(_PARTS), metavar="PARTS", help=f"of {every}")
    parser.add_argument("--rounds", type=_positive, help="how often each side runs (default: 5, quick: 1)")
    parser.add_argument("--clients", type=_positive, help="in the scale part (default: 10000, quick: 1000)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write RESULTS.md and plots there")
    return parser.parse_args()


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    unknown = sorted(set(parts) - set(_PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown)}; there are {', '.join(_PARTS)}")
    return parts


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _settings(options: argparse.Namespace) -> Settings:
    settings = _QUICK if options.quick else Settings()
    given = {name: value for name in ("rounds", "clients") if (value := getattr(options, name)) is not None}
    return dataclasses.replace(settings, **given)


def _output(options: argparse.Namespace) -> Path | None:
    """Where to write. None: it is a part of a run only, which must not replace the results of a whole one."""
    if options.output is not None:
        return Path(options.output)
    if options.quick or set(options.only) != set(_PARTS):
        return None
    return Path(__file__).parent


def _write(results: Results, page: str, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []
    try:
        pictures = plots.draw(results, output / "plots")
    except ImportError as error:
        _tell(f"no plots: {error}")
    links = "".join(f"![{picture.stem}]({picture.relative_to(output)})\n" for picture in pictures)
    path = output / "RESULTS.md"
    path.write_text(page + (f"\n## Plots\n\n{links}" if links else ""), encoding="utf-8")
    _tell(f"written: {path}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
