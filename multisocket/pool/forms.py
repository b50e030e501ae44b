"""The messages between boss and workers: what stands where, and in which order.

A batch of tasks, for whichever worker is free:

    number u32 | tasks u32 | kind u8 | flags u8 | length of the function u16 | 0 u32 | function | tasks

where each task is its length (u32) and its parcel; or the only task is a parcel in parts. All numbers are
little-endian: this never leaves the machine.

An outcome, for the boss (:meth:`multisocket.shm.Board.outcome_head` makes its head):

    number u32 | index of the task u16 | what u8 | flags u8 | microseconds u32 | slot of the worker u32 | parcel

A parcel in parts begins at parcel.HEADER_ROOM, in both.
"""

from __future__ import annotations

import struct

BATCH = struct.Struct("<IIBBHI")
LENGTH = struct.Struct("<I")
OUTCOME = struct.Struct("<IHBBII")

# How a function is called with what is in a task's parcel.
ONE = 0
"""With the object."""
CALL = 1
"""The object is ``(args, kwargs)``."""
MAP = 2
"""Once with each of several objects; the result is a list."""
STAR = 3
"""The same with tuples of arguments."""
STREAM = 4
"""With the object; if it gives a generator, each of its values is a part of the outcome."""

# Flags of both.
IN_PARTS = 1
KEPT = 2
"""Somebody else keeps the content, too: do not write to it."""

# What an outcome is.
DONE = 0
RAISED = 1
UNSENDABLE = 2
"""The result cannot be pickled: a pair of the reason, and of it as ``multiprocessing.Pool`` tells it."""
UNKNOWN = 3
"""Function or arguments cannot be found by their names: the reason."""
PART = 4
"""One of the values of a generator."""
ENDED = 5
"""There are no more parts."""
NOT_READY = 6
"""The initializer has raised."""
AWAKE = 7
"""Nothing but a wake-up."""
