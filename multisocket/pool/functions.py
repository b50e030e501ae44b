"""Functions: how they get to workers, each once.

A function that can be found by its name travels as that name. What a name means in ``__main__`` may have changed since
the workers were forked (notebooks), so there its code's fingerprint goes with it. What has no name goes by value, with
cloudpickle. The bytes travel with each batch when they are few; otherwise they lie in shared memory, and batches say
where. Workers remember what they have loaded.
"""

from __future__ import annotations

import marshal
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from ..late import late
from . import parcel
from .stored import Stored, open_stored

if TYPE_CHECKING:
    import hashlib
else:
    hashlib = late("hashlib")

_BY_NAME = b"n"
_OF_MAIN = b"m"
_STORED = b"s"

# Longer ones are stored. It must go into parcel.HEADER_ROOM, with what else stands there.
_LONG = 200
# Functions that a boss, or a worker, remembers; and their bytes, as long as they are several.
_REMEMBERED = 128
_REMEMBERED_BYTES = 64 << 20
_DIGEST = 16


class Function:
    """What workers are told of a function.

    :ivar blob: bytes that say which, the same for the same function.
    :ivar seconds: that a call takes, lately; None: not known.
    :ivar batch: calls that are given out together.
    :ivar original: what it was made of, if it is one of ``__main__``: by then its name may stand for another one.
    """

    __slots__ = ("__weakref__", "_stored", "batch", "blob", "is_by_value", "name", "original", "seconds")

    def __init__(
        self, blob: bytes, name: str, *, is_by_value: bool = False, original: Callable[..., Any] | None = None
    ) -> None:
        self.name = name
        self.original = original
        self.seconds: float | None = None
        self.batch = 1
        self.is_by_value = is_by_value
        self._stored = Stored(blob) if len(blob) > _LONG else None
        self.blob = blob if self._stored is None else _STORED + self._stored.name.encode()

    def close(self) -> None:
        """No worker asks for it any more."""
        if self._stored is not None:
            self._stored.close()


class Functions:
    """The functions that a boss has given to workers lately.

    :param has_main: whether workers have the main module.
    """

    def __init__(self, *, has_main: bool = True) -> None:
        self._has_main = has_main
        # Named functions, as long as they live: for these alone it is certain that nothing in them changes.
        self._named: weakref.WeakKeyDictionary[Any, tuple[Any, weakref.ref[Function]]] = weakref.WeakKeyDictionary()
        self._by_blob: OrderedDict[tuple[bytes, bool], Function] = OrderedDict()

    def of(self, function: Callable[..., Any]) -> Function:
        """What workers are told of it.

        :raises Exception: what pickle raises, when it cannot be sent at all.
        """
        if not _has_fixed_name(function):
            return self._remember(_BY_NAME + _dumps(function), function)
        code = getattr(function, "__code__", None)
        known = self._named.get(function)
        if known is not None and known[0] is code:
            found = known[1]()
            if found is not None:
                return found
        found = self._found(function)
        self._named[function] = code, weakref.ref(found)
        return found

    def _found(self, function: Any) -> Function:
        if not self._has_main and function.__module__ == "__main__" and parcel.can_pack_by_value():
            return self._remember(_BY_NAME + _dumps_by_value(function), function, is_by_value=True)
        return self._remember(_named(function), function)

    def by_value(self, function: Function) -> Function:
        """The same, to be loaded where its name is not known.

        :raises ImportError: that needs cloudpickle.
        """
        blob = _dumps_by_value(_loads(_whole(function.blob)) if function.original is None else function.original)
        return self._remember(_BY_NAME + blob, function.name, is_by_value=True)

    def close(self) -> None:
        """All workers have ended."""
        for function in list(self._by_blob.values()):
            function.close()

    def _remember(self, blob: bytes, function: Any, *, is_by_value: bool = False) -> Function:
        # By value may be the same as by name: of a module that workers cannot import.
        key = blob, is_by_value
        known = self._by_blob.get(key)
        if known is None:
            name = function if isinstance(function, str) else name_of(function)
            original: Any = function if blob[:1] == _OF_MAIN else None
            known = self._by_blob[key] = Function(blob, name, is_by_value=is_by_value, original=original)
            while _are_too_many([len(blob) for blob, _ in list(self._by_blob)]):
                self._by_blob.popitem(last=False)
        return known


def _are_too_many(sizes: list[int]) -> bool:
    return len(sizes) > _REMEMBERED or (len(sizes) > 1 and sum(sizes) > _REMEMBERED_BYTES)


def name_of(function: Any) -> str:
    """How people call it."""
    name = getattr(function, "__qualname__", None)
    if isinstance(name, str):
        return name
    inner = getattr(function, "func", None)  # functools.partial
    return f"partial of {name_of(inner)}" if inner is not None else type(function).__qualname__


def _has_fixed_name(function: Any) -> bool:
    if type(function) is FunctionType:
        return "<" not in function.__qualname__
    return type(function) is BuiltinFunctionType and isinstance(function.__self__, ModuleType)


def _named(function: Any) -> bytes:
    try:
        name = pickle.dumps(function, 5)
    except Exception:
        return _BY_NAME + _dumps(function)
    if function.__module__ != "__main__" or type(function) is not FunctionType:
        return _BY_NAME + name
    return _OF_MAIN + _fingerprint(function) + name


def _dumps(function: Any) -> bytes:
    packed = parcel.pack(function)
    # Buffers within functions are rare: here they need not be spared a copy.
    if isinstance(packed, bytes):
        return packed
    try:
        return pickle.dumps(function, 5)
    except Exception:
        return _dumps_by_value(function)


def _dumps_by_value(function: Any) -> bytes:
    packed = parcel.pack_by_value(function)
    return packed if isinstance(packed, bytes) else bytes(packed[0])


def _fingerprint(function: FunctionType) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    # In version 2 the same code always gives the same bytes.
    digest.update(marshal.dumps(_in_order(function.__code__), 2))
    for values in (function.__defaults__, function.__kwdefaults__):
        if values:
            digest.update(_fingerprint_of_values(values))
    return digest.digest()


def _in_order(constant: Any) -> Any:
    """Without sets: before Python 3.11 their order differs between processes."""
    if isinstance(constant, CodeType):
        return constant.replace(co_consts=tuple(map(_in_order, constant.co_consts)))
    if isinstance(constant, frozenset):
        return tuple(sorted(marshal.dumps(one, 2) for one in constant))
    return constant


def _fingerprint_of_values(values: Any) -> bytes:
    try:
        return marshal.dumps(values, 2)
    except ValueError:  # of types that may look different in each process
        return b""


# --- in workers ---

WITHOUT_MAIN = 'make the pool after it and under if __name__ == "__main__":, or install cloudpickle'
"""What to do about a name that a worker does not know."""


class UnknownFunction(Exception):
    """It has no such name here, or what has it is another one."""


class Loaded:
    """The functions that a worker has loaded. Other callables (methods, partials, objects) may change when they are
    called: of these only the bytes are kept, and each task gets its own, as it would if they came with it."""

    def __init__(self) -> None:
        self._by_blob: OrderedDict[bytes, tuple[Callable[..., Any] | bytes, int]] = OrderedDict()

    def get(self, blob: bytes) -> Callable[..., Any]:
        """The function.

        :raises UnknownFunction: it must be sent by value.
        :raises Exception: it cannot be loaded.
        """
        known = self._by_blob.get(blob)
        if known is None:
            whole = _whole(blob)
            found = _loads(whole)
            self._by_blob[blob] = found if _is_function(found) else whole, len(whole)
            while _are_too_many([size for _, size in self._by_blob.values()]):
                self._by_blob.popitem(last=False)
            return found
        kept = known[0]
        return _loads(kept) if isinstance(kept, bytes) else kept


def _is_function(found: Any) -> bool:
    return type(found) is FunctionType or isinstance(found, type) or _has_fixed_name(found)


def _whole(blob: bytes) -> bytes:
    if blob[:1] != _STORED:
        return blob
    with open_stored(blob[1:].decode()) as stored:
        return stored[:]


def _loads(blob: bytes) -> Callable[..., Any]:
    try:
        if blob[:1] == _BY_NAME:
            return pickle.loads(memoryview(blob)[1:])  # type: ignore[no-any-return]
        found = pickle.loads(memoryview(blob)[1 + _DIGEST :])
    except (AttributeError, ImportError) as error:
        raise UnknownFunction(f"{error}: {WITHOUT_MAIN}") from error
    if type(found) is not FunctionType or _fingerprint(found) != blob[1 : 1 + _DIGEST]:
        raise UnknownFunction(
            f"{name_of(found)} of __main__ has changed since the workers were started: make a new pool, or install"
            " cloudpickle"
        )
    return found
