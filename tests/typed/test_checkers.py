"""Type checkers accept the programs in this folder, and refuse every mistake. `make lint` shows them more."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = ["tests/typed/programs.py", "tests/typed/refused.py"]


@pytest.mark.parametrize(
    ("module", "arguments"), [("mypy", ["--no-error-summary"]), ("basedpyright", [])], ids=["mypy", "pyright"]
)
def test_a_checker_accepts_programs_and_refuses_mistakes(module: str, arguments: list[str]) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: it comes with `make lint`")
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, *FILES], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_mistake_is_marked() -> None:
    marked = [line for line in (ROOT / FILES[1]).read_text().splitlines() if "# type: ignore[" in line]
    assert len(marked) > 90
