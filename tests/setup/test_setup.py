"""What make says where something is missing, and which interpreter it takes. Nothing is built here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import DEADLINE

HERE = Path(__file__).parents[2]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
pytestmark = pytest.mark.skipif(
    not (HERE / "Makefile").exists() or not shutil.which("make"), reason="needs make, and the project's folder"
)

# What Python is made to believe, for each kind of machine; and what has to be told.
MACHINES = {
    "Python 3.9": ("sys.version_info = Version(3, 9, 18, 'final', 0)", ["3.10 or newer", "is 3.9", "PYTHON="]),
    "PyPy": ("sys.implementation.name = 'pypy'", ["needs CPython"]),
    "32 bits": ("sys.maxsize = 2**31 - 1", ["64-bit"]),
    "macOS": ("sys.platform = 'darwin'", ["Linux only", "darwin"]),
    "no ensurepip": ("sys.modules['ensurepip'] = None", ["ensurepip", f"python{VERSION}-venv", "dnf install"]),
    "no venv": ("sys.modules['venv'] = None", ["module venv", f"python{VERSION}-venv", "dnf install"]),
    "no headers": (
        "sysconfig.get_paths = lambda *_: {'include': '/nowhere'}",
        ["/nowhere/Python.h", "-dev", "dnf install", "-devel"],
    ),
    "no space": (
        "import shutil; shutil.disk_usage = lambda _: __import__('types').SimpleNamespace(free=10**6)",
        ["MB", "has only 1 MB free"],
    ),
    "no temporary folder": (
        "import tempfile\ndef refuse(): raise FileNotFoundError\ntempfile.gettempdir = refuse",
        ["TMPDIR"],
    ),
}
# Values of CC, with the same.
COMPILERS = {
    "none": (None, ["C compiler", "cc, gcc and clang were not found", "apt install gcc", "dnf install gcc"]),
    "not there": ("no-such-cc", ["C compiler", "CC is no-such-cc", "apt install gcc", "dnf install gcc"]),
    "without libraries": ("broken-cc", ["C compiler", "broken-cc says", "stdio.h", "libc6-dev", "glibc-devel"]),
}
TOOLS = ["sh", "make", "cat", "nproc", "echo", "rm", "touch", "mkdir"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project's files that building needs."""
    copy = tmp_path / "a clone"
    copy.mkdir()
    for name in ["Makefile", "pyproject.toml", "meson.build"]:
        shutil.copy(HERE / name, copy)
    for name in [".ci", "shm"]:
        shutil.copytree(HERE / name, copy / name)
    return copy


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder to be the whole PATH: what make needs, no Python and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    add_program(folder, "broken-cc", 'echo "x.c:1: fatal error: stdio.h: No such file or directory" >&2; exit 1')
    return folder


def add_program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def add_python(folder: Path, name: str, belief: str = "") -> None:
    """An interpreter that runs some code before what it is asked to run."""
    prelude = folder / f"{name}.py"
    prelude.write_text(
        "import collections, runpy, sys, sysconfig\n"
        "sysconfig.get_config_vars()\n"
        "Version = collections.namedtuple('Version', 'major minor micro releaselevel serial')\n"
        f"{belief}\n"
        "if sys.argv[1] == '-c':\n"
        "    exec(sys.argv[2])\n"
        "else:\n"
        "    sys.argv = sys.argv[1:]\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    add_program(folder, name, f'exec "{sys.executable}" -I "{prelude}" "$@"')


Make = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def make(clone: Path, programs: Path) -> Make:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(programs / "make"), *arguments],
            cwd=clone,
            env={"PATH": str(programs), "HOME": str(clone), "LC_ALL": "C", **environment},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    return run


def assert_told(done: subprocess.CompletedProcess[str], words: list[str], clone: Path) -> None:
    """One line, with all words; behind it only make's own; and nothing was begun."""
    told, *rest = done.stderr.splitlines()
    assert done.returncode == 2, done
    assert told.startswith("multisocket "), done.stderr
    assert [word for word in words if word not in told] == [], told
    assert len(rest) == 1, done.stderr
    assert rest[0].startswith("make: ***"), done.stderr
    assert done.stdout == ""
    assert not list(clone.glob(".venv*"))


@pytest.mark.parametrize("target", ["demo", "test", "build", "lint", "wheel"])
@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_missing_is_told(clone: Path, programs: Path, make: Make, machine: str, target: str) -> None:
    belief, words = MACHINES[machine]
    add_python(programs, "python3", belief)
    assert_told(make(target), words, clone)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiler_that_is_missing_is_told(clone: Path, programs: Path, make: Make, compiler: str) -> None:
    given, words = COMPILERS[compiler]
    add_python(programs, "python3")
    assert_told(make("demo", **({"CC": given} if given else {})), words, clone)


@pytest.mark.parametrize("name", ["python3.99", "/no such/python3"])
def test_a_python_that_is_not_there_is_told(clone: Path, make: Make, name: str) -> None:
    assert_told(make("demo", f"PYTHON={name}"), ["3.10 or newer", f"{name} was not found"], clone)


def test_no_python_at_all_is_told(clone: Path, make: Make) -> None:
    words = ["3.10 or newer", "python3 was not found", "apt install python3 python3-venv", "dnf install", "PYTHON="]
    assert_told(make("demo"), words, clone)


def test_a_python_that_does_not_run_is_told(clone: Path, programs: Path, make: Make) -> None:
    add_program(programs, "python3", "exit 127")
    assert_told(make("demo"), ["3.10 or newer", "does not run"], clone)


def test_a_folder_that_cannot_be_written_to_is_told(clone: Path, programs: Path, make: Make) -> None:
    add_python(programs, "python3")
    if os.geteuid():
        clone.chmod(0o555)
        assert_told(make("demo"), ["cannot write to", str(clone), "VENV"], clone)
        clone.chmod(0o755)
    else:  # to whom modes say nothing
        assert_told(make("demo", "VENV=/proc/self/venv"), ["cannot write to /proc/self", "VENV"], clone)


Chosen = Callable[..., "dict[str, str]"]


@pytest.fixture
def chosen(make: Make) -> Chosen:
    """What make has chosen."""

    def ask(*arguments: str, **environment: str) -> dict[str, str]:
        names = ["PYTHON", "VERSION", "VENV", "BUILD"]
        rule = "chosen: ; @echo '" + "|".join(f"$({name})" for name in names) + "'"
        done = make(f"--eval={rule}", "chosen", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return dict(zip(names, done.stdout.strip().split("|"), strict=True))

    return ask


OLD = "sys.version_info = Version(3, 9, 18, 'final', 0)"
NEW = "sys.version_info = Version(3, 14, 2, 'final', 0)"
THREADED = "sysconfig.get_config_var = {'Py_GIL_DISABLED': 1}.get; " + NEW


def test_the_first_python_that_is_new_enough_is_taken(programs: Path, chosen: Chosen) -> None:
    add_python(programs, "python3", OLD)
    add_python(programs, "python3.14", NEW)
    assert chosen() == {"PYTHON": "python3.14", "VERSION": "3.14", "VENV": ".venv", "BUILD": "build/3.14"}
    add_python(programs, "python3")
    assert chosen() == {"PYTHON": "python3", "VERSION": VERSION, "VENV": ".venv", "BUILD": f"build/{VERSION}"}


@pytest.mark.parametrize("way", ["argument", "environment"])
@pytest.mark.parametrize(("belief", "version"), [(NEW, "3.14"), (THREADED, "3.14t")])
def test_a_python_that_is_given_has_an_environment_of_its_own(
    programs: Path, chosen: Chosen, way: str, belief: str, version: str
) -> None:
    add_python(programs, "python3")
    add_python(programs, "my python", belief)
    path = str(programs / "my python")
    found = chosen(f"PYTHON={path}") if way == "argument" else chosen(PYTHON=path)
    assert found == {"PYTHON": path, "VERSION": version, "VENV": f".venv-{version}", "BUILD": f"build/{version}"}


def test_an_environment_is_made_anew_for_another_version_or_folder(clone: Path, programs: Path, make: Make) -> None:
    add_python(programs, "python3")
    venv = clone / ".venv"
    venv.mkdir()
    (venv / f".ready-{VERSION}").write_text(f"{clone}\n")
    (venv / f".tools-{VERSION}-build-system").touch()
    (venv / "bin").mkdir()
    (venv / "bin/ninja-with-tools").touch()
    (venv / f".installed-{VERSION}").touch()
    assert make("-q", "build").returncode == 0, "all is there"

    add_python(programs, "python3", "sys.version_info = Version(3, 99, 0, 'final', 0)")
    assert make("-q", "build").returncode == 1, "python3 has become another one"

    add_python(programs, "python3")
    (venv / f".ready-{VERSION}").write_text("/another/clone\n")
    assert make("-q", "build").returncode == 1, "the folder is a copy"
