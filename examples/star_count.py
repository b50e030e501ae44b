"""Counts stars in large pictures: NumPy arrays that go from process to process without being copied.

Two stages: the first takes the sky's brightness away, the second finds the stars. A picture is written into shared
memory once, when it is sent, and both stages work on it right there, in place.

    python examples/star_count.py                       # pictures of a made-up sky, whose stars are known
    python examples/star_count.py one.npy two.npy       # one's own: two-dimensional arrays
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multisocket.pool import Pipeline, Stage
from multisocket.shm import copied_bytes

Picture = NDArray[np.float32]

WINDOW = 64
SIGMAS = 8.0


# --- in the workers ---


def without_sky(picture: Picture) -> Picture:
    """The picture less the median brightness around each place. The array is in shared memory, and is changed there."""
    height, width = picture.shape
    for top in range(0, height, WINDOW):
        for left in range(0, width, WINDOW):
            tile = picture[top : top + WINDOW, left : left + WINDOW]
            tile -= np.median(tile)
    return picture


def stars(picture: Picture) -> int:
    """How many places are brighter than the noise and than all around them."""
    noise = float(np.median(np.abs(picture))) * 1.4826
    bright = picture[1:-1, 1:-1] > SIGMAS * noise
    height, width = picture.shape
    for down in range(3):
        for right in range(3):
            if (down, right) != (1, 1):
                bright &= picture[1:-1, 1:-1] > picture[down : height - 2 + down, right : width - 2 + right]
    return int(bright.sum())


# --- in the first process ---


def made_up_sky(seed: int, size: int) -> tuple[Picture, int]:
    """A picture, and how many stars are in it."""
    random = np.random.default_rng(seed)
    slope = np.linspace(100.0, 400.0, size, dtype=np.float32)
    picture = slope[:, None] + slope[None, :] + random.normal(0, 5, (size, size)).astype(np.float32)
    # Far enough from each other and from the edge to be told apart.
    places = random.choice((size // 16 - 2) ** 2, size=int(random.integers(50, 200)), replace=False)
    down, right = (places // (size // 16 - 2) + 1) * 16, (places % (size // 16 - 2) + 1) * 16
    picture[down, right] += random.uniform(200, 2000, len(places)).astype(np.float32)
    return picture, len(places)


def skies(count: int, size: int, known: list[int]) -> Iterator[Picture]:
    for seed in range(count):
        picture, number = made_up_sky(seed, size)
        known.append(number)
        yield picture


def count_stars(pictures: Iterable[Picture], workers: int) -> list[int]:
    pipeline = Pipeline(Stage(without_sky, workers=workers), Stage(stars, workers=workers))
    with pipeline.run(pictures) as counts:
        found = list(counts)
        busiest = max(counts.stats(), key=lambda stage: stage.busy)
    print(f"the busiest stage was {busiest.name}: {busiest.busy:.0%} of the time")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts stars in pictures with worker processes.")
    parser.add_argument("files", nargs="*", type=Path, help="pictures: .npy files of two-dimensional arrays")
    parser.add_argument("--pictures", type=int, default=16, help="made-up ones")
    parser.add_argument("--size", type=int, default=2048, help="of made-up ones, pixels")
    parser.add_argument("--workers", type=int, default=2, help="of each stage")
    arguments = parser.parse_args()

    known: list[int] = []
    if arguments.files:
        pictures: Iterable[Picture] = (np.load(path).astype(np.float32) for path in arguments.files)
    else:
        pictures = skies(arguments.pictures, arguments.size, known)
    began = time.perf_counter()
    found = count_stars(pictures, arguments.workers)
    seconds = time.perf_counter() - began
    for name, number in zip(arguments.files or range(len(found)), found, strict=True):
        print(f"picture {name}: {number} stars")
    print(f"{len(found)} pictures in {seconds:.2f} s, {copied_bytes() / 1e6:.1f} MB copied by this process")
    if known and found != known:
        print(f"these were in them: {known}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
