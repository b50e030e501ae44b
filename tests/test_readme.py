"""The programs in the README do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conftest import DEADLINE

README = Path(__file__).parent.parent / "README.md"


def output(folder: Path, beginning: str) -> str:
    """What the program that begins so prints, at addresses of its own."""
    (text,) = re.findall(rf"```python\n({beginning}.*?)```", README.read_text(), re.DOTALL)
    program = folder / "program.py"
    program.write_text(re.sub(r"ipc://@\w+", f"ipc://@{folder.name}", text))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert not done.stderr
    return done.stdout


def test_the_first_program(folder: Path) -> None:
    assert sorted(re.findall(r"b'(\w+)'", output(folder, "import multiprocessing"))) == ["ONE", "THREE", "TWO"]


def test_the_request(folder: Path) -> None:
    assert output(folder, "from multisocket.protocol") == "b'olleh'\n"
