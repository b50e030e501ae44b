"""What an import says where the native core is not built: in the project's folder, for instance."""

from __future__ import annotations

import importlib.machinery
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import multisocket
from conftest import DEADLINE

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
WAYS = [
    ["-c", "import multisocket"],
    ["-c", "import multisocket.pool"],
    ["-c", "from multisocket.shm import Ring"],
    ["-c", "from multisocket import aio"],
    ["-m", "multisocket", "clean"],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the Python files of the package, and nothing else."""
    source = Path(multisocket.__file__).parent
    shutil.copytree(source, tmp_path / "multisocket", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def told(folder: Path, *command: str) -> str:
    """The last line of the error; without site-packages, so that only the folder is found."""
    run = [sys.executable, "-S", *command]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 1, done
    assert done.stderr.count("Traceback") <= 1, done.stderr
    assert "During handling" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[1])
def test_a_clone_that_is_not_built_says_what_to_do(folder: Path, way: list[str]) -> None:
    (folder / "meson.build").touch()
    line = told(folder, *way)
    assert f"multisocket's native core is not built in {folder / 'multisocket'}" in line
    assert "`make build`" in line
    assert "another folder" in line


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[1])
def test_a_core_for_another_python_only(folder: Path, way: list[str]) -> None:
    (folder / "meson.build").touch()
    (folder / "multisocket/shm.cpython-39-x86_64-linux-gnu.so").touch()
    line = told(folder, *way)
    assert "is built for another Python (shm.cpython-39-x86_64-linux-gnu.so)" in line
    assert f"this is {VERSION}" in line
    assert "`make build`" in line


def test_an_installed_copy_without_its_core(folder: Path) -> None:
    line = told(folder, "-c", "import multisocket")
    assert "native core is not built in" in line
    assert "pip install --force-reinstall multisocket" in line


def test_a_core_that_cannot_be_loaded(folder: Path) -> None:
    """The loader knows what is wrong with it."""
    (folder / f"multisocket/shm{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
    assert "file too short" in told(folder, "-c", "import multisocket")


def test_32_bits_are_refused(folder: Path) -> None:
    line = told(folder, "-c", "import sys; sys.maxsize = 2**31 - 1; import multisocket")
    assert line == "ImportError: multisocket needs a 64-bit Python; this is a 32-bit one"
