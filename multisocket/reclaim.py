"""Giving back what the dead held: blocks of arenas, and arenas themselves.

What an arena's references mean, and what a kill leaves of them, is told in ``shm/arena.h``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache

from .errors import BadMessage
from .shm import Arena, Segment, Sighting

Lives = Callable[[int], bool]
"""Tells by the number of a process's family whether the process lives."""


def sweep(arena: Arena, lives: Lives) -> None:
    """Gives back all blocks of an arena that nobody alive has, and that nobody can receive any more."""
    lives = cache(lives)

    @cache
    def open_socket(name: str) -> Segment | None:
        return _open_socket(name, lives)

    doubtful: dict[tuple[Segment, bool], list[Sighting]] = defaultdict(list)
    for seen in arena.sightings():
        is_lost = not lives(seen.holder)
        if seen.is_held and not is_lost:
            continue
        if seen.ring is None:
            arena.reclaim(seen)
            continue
        receiver = open_socket(seen.ring)
        if receiver is None:
            # The Socket that has sent it sends it again to somebody else, as long as it is there.
            if open_socket(seen.via) is None:
                arena.reclaim(seen)
        elif is_lost:
            doubtful[receiver, seen.is_pending].append(seen)
    for (receiver, is_pending), references in doubtful.items():
        arena.settle(receiver, is_pending, references)


def _open_socket(name: str, lives: Lives) -> Segment | None:
    """A Socket's memory; None when the Socket is closed."""
    if not lives(family_of(name)):
        return None
    try:
        segment = Segment.open(name)
    except (FileNotFoundError, BadMessage):
        return None
    return None if segment.closed else segment


def family_of(name: str) -> int:
    """The number in a name that begins like ``/ms-<12 hex digits>``."""
    return int(name[4:16], 16)


def bury(name: str, lives: Lives) -> bool:
    """Closes the arena of a Socket that is gone. True: it is removed; otherwise whoever uses it last removes it.

    :param name: of the arena.
    """
    try:
        arena = Arena.open(name)
    except FileNotFoundError:
        return False
    sweep(arena, lives)
    return arena.close()


def leave(family: int) -> None:
    """This process ends: gives back what it holds, in all arenas."""
    for arena in Arena.mapped():
        for seen in arena.sightings():
            if seen.is_held and seen.holder == family:
                arena.reclaim(seen)
        if arena.closed:
            arena.close()
