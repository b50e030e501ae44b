"""The main module, and whether workers can import it.

A worker that is started by spawn or forkserver needs the main module for the functions and classes in it. Importing it
runs it, so what a program does must stand under ``if __name__ == "__main__":``, or each worker would do it, too. Where
what makes a pool does not, workers are started without the main module: what they need of it goes by value then, which
cloudpickle does.
"""

from __future__ import annotations

import functools
import os
import sys
from multiprocessing import spawn
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..late import late
from .processes import Main

if TYPE_CHECKING:
    import ast
else:
    ast = late("ast")

# In the test of an `if`, these say that what follows is not for those who import the module.
_GUARDS = ("__name__", "parent_process", "current_process")

Block = tuple[int, int]
"""Its first and its last line."""


def main_for_workers() -> Main:
    """How workers import the main module. Called where a pool is made."""
    data = {key: value for key, value in spawn.get_preparation_data("").items() if key.startswith("init_main_")}
    path = data.get("init_main_from_path")
    if path is not None and not os.path.exists(path):  # read from standard input
        return {}
    return data if data and _can_be_imported() else {}


def _can_be_imported() -> bool:
    module = sys.modules["__main__"]
    path = getattr(module, "__file__", None)
    try:
        blocks = _guarded(path, os.stat(path).st_mtime_ns) if path is not None else None
    except OSError:
        blocks = None
    if blocks is None:  # it is in an archive, or compiled
        return True
    line = _line_of(vars(module))
    # It may not run any more, or another thread came here: where it has a guard, believe that it is used.
    return any(first <= line <= last for first, last in blocks) if line else bool(blocks)


def _line_of(names: dict[str, Any]) -> int:
    """The line of the main module that is just executed in this thread; 0: none is."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals is names and frame.f_code.co_name == "<module>":
            return frame.f_lineno
        frame = frame.f_back
    return 0


@functools.lru_cache(maxsize=16)
def _guarded(path: str, _changed: int) -> list[Block] | None:
    """What in a file stands under a guard. None: that cannot be told."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, ValueError, SyntaxError):
        return None
    return [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and _is_guard(node.test)
    ]


def _is_guard(test: ast.expr) -> bool:
    names = (node.id if isinstance(node, ast.Name) else getattr(node, "attr", None) for node in ast.walk(test))
    return any(name in _GUARDS for name in names)
