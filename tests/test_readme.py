"""The program in the README does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conftest import DEADLINE

README = Path(__file__).parent.parent / "README.md"


def test_the_first_program(folder: Path) -> None:
    match = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert match is not None
    program = folder / "program.py"
    program.write_text(match[1].replace("@example", f"@{folder.name}"))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert sorted(re.findall(r"b'(\w+)'", done.stdout)) == ["ONE", "THREE", "TWO"]
    assert not done.stderr
