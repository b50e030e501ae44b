"""What the fork server imports, so that workers need not. See ``processes.py``."""

from __future__ import annotations

from . import worker  # noqa: F401
from .processes import preload

preload()
