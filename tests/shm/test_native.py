"""The native core without Python: threads, crash points, corrupt memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.timeout(300)
def test_native_core() -> None:
    done = subprocess.run(["make", "-C", HERE, "check"], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
