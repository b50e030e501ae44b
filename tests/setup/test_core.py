"""The native core as a file."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from multisocket import shm


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_it_needs_no_library_but_the_c_library() -> None:
    done = subprocess.run(["readelf", "--dynamic", shm.__file__], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", done.stdout))
    assert "libc.so.6" in needed
    assert needed <= {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
