"""Makes C of shm.pyx, as the build calls it: ``python translate.py shm.pyx shm.c``.

The C code names its sources in tracebacks by the paths that Cython has found them at. Seen through a link they read
``multisocket/shm/endpoint.pxi``, wherever the build happens.

Signatures stand in docstrings, where ``inspect`` knows no defaults but constants: the object that means "as the
Socket's option says" is told as ``...``, as in shm.pyi.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Runs Cython; its exit status."""
    source, target = (Path(path).absolute() for path in sys.argv[1:])
    # For the build: what makes it necessary to do this again.
    Path(f"{target}.d").write_text(f"{sys.argv[2]}: {' '.join(map(str, sorted(source.parent.glob('*.pxi'))))}\n")
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.realpath(folder)
        package = Path(root, "multisocket")
        package.mkdir()
        (package / "shm").symlink_to(source.parent)
        command = [sys.executable, "-m", "cython", "-3", "--module-name", "multisocket.shm", "--working", root]
        status = subprocess.call([*command, f"multisocket/shm/{source.name}", "-o", str(target)])
    if status == 0:
        target.write_text(target.read_text().replace("timeout=_unset", "timeout=..."))
    return status


if __name__ == "__main__":
    sys.exit(main())
