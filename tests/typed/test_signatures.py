"""What ``help()``, editors and tracebacks tell of the native core, and of all that is public."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType
from typing import Any

import pytest

import multisocket as ms
from multisocket import shm

PACKAGES = ("multisocket", "multisocket.aio", "multisocket.pool", "multisocket.protocol", "multisocket.transport")
CALLABLE = (BuiltinFunctionType, FunctionType, MethodDescriptorType, staticmethod, classmethod)

# Classes that users make themselves; the other native ones come from functions and methods.
MADE = (shm.Message, shm.Wire, shm.Carrier, shm.Lookout, shm.TopicReader, shm.TopicWriter)


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _natives() -> Iterator[tuple[str, Any]]:
    for name, found in vars(shm).items():
        if not _is_public(name) or not str(getattr(found, "__module__", "")).startswith("multisocket"):
            continue
        if isinstance(found, type) and issubclass(found, Exception):
            continue
        if isinstance(found, (type, BuiltinFunctionType)):
            yield name, found
        if isinstance(found, type):
            yield from ((f"{name}.{its}", vars(found)[its]) for its in vars(found) if _is_public(its))


def _publics() -> Iterator[tuple[str, Any]]:
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            found = getattr(module, name)
            yield f"{package}.{name}", found
            if isinstance(found, type):
                for base in found.__mro__:
                    if base.__module__.startswith("multisocket"):
                        its = [one for one in vars(base) if _is_public(one)]
                        yield from ((f"{package}.{name}.{one}", inspect.getattr_static(found, one)) for one in its)


ALL = {**dict(_natives()), **dict(_publics())}


def test_there_is_something_to_look_at() -> None:
    assert {"Message", "Endpoint.send", "Ring.create", "encode", "multisocket.Socket.recv_msg"} <= ALL.keys()


def test_all_that_is_public_has_a_docstring() -> None:
    documented = {name: found for name, found in ALL.items() if callable(found) or inspect.isdatadescriptor(found)}
    documented.update((name, found) for name, found in ALL.items() if isinstance(found, CALLABLE))
    assert [name for name, found in documented.items() if not inspect.getdoc(found)] == []


def test_all_that_can_be_called_has_a_signature() -> None:
    called = {name: found for name, found in ALL.items() if isinstance(found, CALLABLE)}
    assert [name for name, found in called.items() if not _has_signature(found)] == []


def _has_signature(found: Any) -> bool:
    try:
        inspect.signature(found.__func__ if isinstance(found, (staticmethod, classmethod)) else found)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_there_is_a_signature_of_constructors(kind: type) -> None:
    given = inspect.signature(kind).parameters.values()
    assert [one.name for one in given if one.name in ("args", "kwargs")] == []


def test_a_signature_tells_what_the_call_takes() -> None:
    told = inspect.signature(ms.Socket.recv_msg)
    assert list(told.parameters) == ["self", "timeout", "copy"]
    assert told.parameters["timeout"].default is ...
    assert told.parameters["copy"].kind is inspect.Parameter.KEYWORD_ONLY
    assert told.parameters["copy"].default is True
    assert "timeout" in inspect.getdoc(ms.Socket.send) or ""


def test_types_say_where_they_are_imported_from() -> None:
    assert repr(ms.Message) == "<class 'multisocket.Message'>"
    assert repr(ms.Loan) == "<class 'multisocket.Loan'>"
    for name, found in _natives():
        if isinstance(found, type) and found not in (ms.Message, ms.Loan):
            assert (found.__module__, found.__qualname__) == ("multisocket.shm", name)


def test_a_traceback_names_the_package() -> None:
    with ms.Socket() as sock, pytest.raises(ms.Timeout) as caught:
        sock.recv(timeout=0)
    native = [frame for frame in traceback.extract_tb(caught.tb) if frame.name.startswith("multisocket.")]
    assert native
    for frame in native:
        folder, name = str(Path(frame.filename).parent), Path(frame.filename).name
        assert folder == "multisocket/shm"
        assert name.endswith((".pxi", ".pyx"))
        assert frame.name.startswith("multisocket.shm.")
