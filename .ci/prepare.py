"""What the Makefile must know of a machine before anything can be built there.

    python .ci/prepare.py machine VENV BUILD     says in one line what the machine lacks
    python .ci/prepare.py shm                    says in one line what is wrong with /dev/shm
    python .ci/prepare.py requirements EXTRA     lists what an extra of pyproject.toml, or the build-system, asks for

Runs with Python 3.10 or newer and nothing else installed. Exit status 1 means that something is missing.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
# What `make demo` takes, and then `make test`: 110 MB and 450 MB.
SPACE = 250_000_000
# A Socket takes 1 MB, and what the demo has on its way about 10.
SHM_SPACE = 32_000_000
PROGRAM = """
#include <Python.h>
#include <linux/futex.h>
#include <stdatomic.h>
int start(void) { return FUTEX_WAIT + ATOMIC_INT_LOCK_FREE + PY_MAJOR_VERSION; }
"""


class Missing(Exception):
    """Something that the build needs is not there; says what, and where it comes from."""


def packages(apt: str, dnf: str) -> str:
    return f"apt install {apt}, or dnf install {dnf}"


def check_system() -> None:
    if sys.platform != "linux":
        raise Missing(f"runs on Linux only; this is {sys.platform}")
    if sys.implementation.name != "cpython":
        raise Missing(f"needs CPython 3.10 or newer; {sys.executable} is {platform.python_implementation()}")
    if sys.maxsize < 2**32:
        raise Missing(f"needs a 64-bit Python; {sys.executable} is a 32-bit one")


def check_folder(folder: Path) -> None:
    """There must be a place to write to, with room."""
    existing = next(one for one in [folder, *folder.parents] if one.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise Missing(
            f"cannot write to {existing}: {error.strerror} (clone it to where you may write, "
            "or set VENV and BUILD to folders elsewhere)"
        ) from None
    free = shutil.disk_usage(existing).free
    if free < SPACE:
        raise Missing(f"needs {SPACE // 10**6} MB for its build, and {existing} has only {free // 10**6} MB free")


def check_temporary_folder() -> None:
    try:
        folder = tempfile.gettempdir()
    except OSError:
        raise Missing("needs a folder for temporary files: none can be written to (set TMPDIR=...)") from None
    free = shutil.disk_usage(folder).free
    if free < SPACE // 5:
        raise Missing(
            f"needs {SPACE // 5 // 10**6} MB for temporary files, and {folder} has only {free // 10**6} MB free "
            "(set TMPDIR=...)"
        )


def check_venv() -> None:
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise Missing(
            f"needs Python's module {error.name}: {packages(f'python{VERSION}-venv', 'python3-libs python3-pip')}"
        ) from None


def check_headers() -> None:
    folder = sysconfig.get_paths()["include"]
    if not (Path(folder) / "Python.h").exists():
        apt = f"python{VERSION}-nogil" if IS_FREE_THREADED else f"python{VERSION}-dev"
        dnf = f"python{VERSION}-freethreading-devel" if IS_FREE_THREADED else f"python{VERSION}-devel or python3-devel"
        raise Missing(f"needs the headers of Python {VERSION} ({folder}/Python.h): {packages(apt, dnf)}")


def check_compiler() -> None:
    """A compiler that really makes a library with Python's headers and the system's."""
    given = os.environ.get("CC")
    wanted = [shlex.split(given)] if given else [["cc"], ["gcc"], ["clang"]]
    compiler = next((words for words in wanted if words and shutil.which(words[0])), None)
    if compiler is None:
        found = f"CC is {given}, which was not found" if given else "cc, gcc and clang were not found"
        raise Missing(f"needs a C compiler; {found}: {packages('gcc libc6-dev', 'gcc')}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "program.c"
        source.write_text(PROGRAM)
        command = [*compiler, "-std=c11", "-fPIC", "-shared", "-pthread", f"-I{sysconfig.get_paths()['include']}"]
        run = subprocess.run(
            [*command, "-o", f"{folder}/program.so", source], capture_output=True, text=True, errors="replace"
        )
    if run.returncode:
        lines = [line.strip() for line in run.stderr.splitlines() if "error" in line] or run.stderr.split("\n")
        raise Missing(
            f"needs a C compiler that works; {shlex.join(compiler)} says {lines[0]!r}: "
            f"{packages('gcc libc6-dev', 'gcc glibc-devel')}"
        )


def check_machine(venv: str, build: str) -> None:
    check_system()
    for folder in (venv, build):
        check_folder(Path(folder).absolute())
    check_temporary_folder()
    check_venv()
    check_headers()
    check_compiler()


def check_shm() -> None:
    folder = "/dev/shm"
    if not os.path.isdir(folder):
        raise Missing(f"needs shared memory, and there is no {folder} (mount -t tmpfs tmpfs {folder})")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise Missing(f"cannot make shared memory in {folder}: {error.strerror}") from None
    free = shutil.disk_usage(folder).free
    if free < SHM_SPACE:
        raise Missing(
            f"needs {SHM_SPACE // 10**6} MB of shared memory, and {folder} has only {free // 10**6} MB free "
            f"(remove files there, or mount -o remount,size=1g {folder})"
        )


def requirements(extra: str) -> list[str]:
    """With those of the library itself.

    :param extra: of pyproject.toml, or ``build-system`` for what the build needs.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # before 3.11
        from pip._vendor import tomli as tomllib  # type: ignore[no-redef]
    about = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    project = about["project"]
    if extra == "build-system":
        return [*about["build-system"]["requires"], *project["dependencies"]]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def main(action: str, *arguments: str) -> None:
    if action == "machine":
        check_machine(*arguments)
    elif action == "shm":
        check_shm()
    elif action == "requirements":
        print("\n".join(requirements(*arguments)))
    elif action == "no-packages":
        raise Missing(
            "could not install the packages that it needs (pip said why): without a network, set PIP_NO_INDEX=1 and "
            "PIP_FIND_LINKS to a folder that has them"
        )
    else:
        raise Missing(f"knows no {action!r} in {__file__}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Missing as missing:
        sys.exit(f"multisocket {missing}")
