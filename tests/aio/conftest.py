"""Tests of coroutines run in the loop of asyncio, and in that of uvloop where it is installed."""

from __future__ import annotations

import asyncio

import pytest

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def loop_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """``run`` of test_socket uses it."""
    if request.param == "uvloop":
        if uvloop is None:
            pytest.skip("uvloop is not installed")
        monkeypatch.setattr(asyncio.events, "new_event_loop", uvloop.new_event_loop)  # what asyncio.run calls
    return str(request.param)
