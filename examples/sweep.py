"""A parameter sweep that a killed worker does not stop.

For which growth rates is the logistic map chaotic? Each task computes its Lyapunov exponent for one rate. In the middle
of it all a worker is killed, as a system short of memory might do; its task is done again, and nothing is lost.

    python examples/sweep.py                            # 400 rates; the result as a small plot
    python examples/sweep.py --rates 5000 --kill 20
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from concurrent.futures import as_completed

from multisocket.pool import Executor

LOW, HIGH = 2.8, 4.0


def exponent(rate: float, steps: int) -> float:
    """How fast two neighbours part: more than 0 is chaos."""
    x, total = 0.3, 0.0
    for _ in range(100):
        x = rate * x * (1 - x)
    for _ in range(steps):
        x = rate * x * (1 - x)
        total += math.log(max(abs(rate * (1 - 2 * x)), 1e-12))
    return total / steps


def sweep(rates: list[float], steps: int, workers: int, kills: int) -> list[float]:
    found: dict[float, float] = {}
    kill_at = {(number + 1) * len(rates) // (kills + 1) for number in range(kills)}
    with Executor(workers, retries=3) as executor:
        futures = {executor.submit(exponent, rate, steps): rate for rate in rates}
        for done, future in enumerate(as_completed(futures)):
            found[futures[future]] = future.result()
            if done in kill_at and (alive := executor.workers):
                os.kill(alive[done % len(alive)].pid or 0, signal.SIGKILL)
                print(f"killed a worker after {done + 1} of {len(rates)} tasks", file=sys.stderr)
    return [found[rate] for rate in rates]


def plot(rates: list[float], exponents: list[float], width: int = 72) -> None:
    """A column for each group of rates: + where there is chaos."""
    groups = [exponents[at * len(rates) // width : (at + 1) * len(rates) // width] for at in range(width)]
    print("".join(" " if not group else "+" if sum(group) > 0 else "." for group in groups))
    print(f"{LOW:<{width // 2}}{HIGH:>{width - width // 2}}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Finds where the logistic map is chaotic.")
    parser.add_argument("--rates", type=int, default=400)
    parser.add_argument("--steps", type=int, default=20000, help="of the map, for each rate")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--kill", type=int, default=1, help="how many workers are killed on the way")
    arguments = parser.parse_args()
    rates = [LOW + (HIGH - LOW) * number / max(1, arguments.rates - 1) for number in range(arguments.rates)]
    exponents = sweep(rates, arguments.steps, arguments.workers, arguments.kill)
    plot(rates, exponents)
    chaotic = sum(value > 0 for value in exponents)
    print(f"{chaotic} of {len(rates)} rates are chaotic, the first at {first_chaos(rates, exponents):.3f}")
    return 0


def first_chaos(rates: list[float], exponents: list[float]) -> float:
    return next((rate for rate, value in zip(rates, exponents, strict=True) if value > 0), math.nan)


if __name__ == "__main__":
    sys.exit(main())
