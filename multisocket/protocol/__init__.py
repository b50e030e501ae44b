"""Protocols: what Sockets are used for."""

from __future__ import annotations

from .pipeline import Pull, Push

__all__ = ["Pull", "Push"]
