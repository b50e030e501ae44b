"""What to do when the native core cannot be imported. Loaded only then."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path


def explain(error: ImportError) -> ImportError:
    """The error to raise for that of an import of ``multisocket.shm``, in one line.

    It is given back as it is when something else was missing, such as a dependency.
    """
    folder = Path(__file__).parent
    if sys.maxsize < 2**32:
        return ImportError("multisocket needs a 64-bit Python; this is a 32-bit one", path=str(folder))
    if error.name != "multisocket.shm":
        return error
    if is_there := sorted(folder.glob("shm.*.so")):
        if any(path.name == f"shm{suffix}" for path in is_there for suffix in importlib.machinery.EXTENSION_SUFFIXES):
            return error  # the loader says what is wrong with it
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        found = f"in {folder} is built for another Python ({is_there[0].name}), and this is {version}"
    else:
        found = f"is not built in {folder}"
    if (folder.parent / "meson.build").exists():
        do = (
            f"that folder is its source, found before any installed copy: run `make build` in {folder.parent} and use "
            "its .venv/bin/python, or start Python in another folder"
        )
    else:
        do = "install it again: python -m pip install --force-reinstall multisocket"
    return ImportError(f"multisocket's native core {found}; {do}", name=error.name, path=str(folder))
