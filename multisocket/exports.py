"""Public names: what is exported by a package says so, wherever it is defined.

So a traceback tells of ``multisocket.Timeout``, and ``repr``, ``help()`` and pickles name what users import. Pickles
that name the module of the definition can be read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FunctionType


def publish(package: str, names: Iterable[str], found: Mapping[str, object]) -> None:
    """Has classes and functions name a package as their module.

    :param package: its ``__name__``.
    :param names: what it exports, its ``__all__``.
    :param found: where these are, its ``globals()``.
    """
    for name in names:
        one = found[name]
        if isinstance(one, (type, FunctionType)) and one.__module__ != package:
            one.__module__ = package
