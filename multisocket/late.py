"""Modules that are imported when something of them is first needed: so `import multisocket` takes little time.

For type checkers the name is the module itself::

    if TYPE_CHECKING:
        import socket
    else:
        socket = late("socket")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging


class _Late:
    """Stands for a module. What was asked of it is remembered, so the next time costs no more than with the module."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(import_module(self._module), name)
        setattr(self, name, found)
        return found


class _Log:
    """The library's logger."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(import_module("logging").getLogger("multisocket"), name)
        setattr(self, name, found)
        return found


def late(module: str) -> Any:
    """A module that is imported with the first use of one of its names.

    :param module: its full name.
    """
    return _Late(module)


if TYPE_CHECKING:
    log: logging.Logger
else:
    log = _Log()
