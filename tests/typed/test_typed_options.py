"""Options as type checkers see them are those that the program takes."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import ssl
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import multisocket as ms
from multisocket import aio, options, protocol
from multisocket.options import Option
from multisocket.protocol import stream
from multisocket.transport import tls, ws


def _without(*names: str) -> Mapping[str, Option]:
    return {name: option for name, option in options.SOCKET.items() if name not in names}


LISTEN = {**options.LISTENER, **options.WIRE, **tls.OPTIONS, **ws.Wss.options}

TABLES: list[tuple[type, Mapping[str, Option]]] = [
    (options.SocketOptions, options.SOCKET),
    (options.ListenOptions, LISTEN),
    (options.DialOptions, {**LISTEN, **options.DIALER}),
    (options.PairOptions, _without("pipe_limit")),
    (options.PushOptions, _without("no_recv")),
    (options.PullOptions, _without("no_send")),
    (options.PubSubOptions, _without("no_recv", "no_send")),
    (options.StreamOptions, {**_without("no_recv", "no_send", "send_best_effort"), **stream.OPTIONS}),
]

# Texts that are not files: the program takes a path there as any text, but who gives one has made a mistake.
NO_FILES = ("server_name", "path")

VALUES: list[Any] = [
    None,
    True,
    0,
    1,
    4096,
    0.5,
    "none",
    "required",
    "anything",
    b"bytes",
    Path("/x"),
    len,
    [],
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
]


def _id(given: object) -> str:
    return given.__name__ if isinstance(given, type) else ""


@pytest.mark.parametrize(("kind", "table"), TABLES, ids=_id)
def test_the_names_are_the_same(kind: type, table: Mapping[str, Option]) -> None:
    assert sorted(_hints(kind)) == sorted(table)


@pytest.mark.parametrize(("kind", "table"), TABLES, ids=_id)
def test_the_types_are_the_same(kind: type, table: Mapping[str, Option]) -> None:
    hints = _hints(kind)
    for name, option in table.items():
        for value in VALUES:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                is_taken = any(_takes(option, type(value)(one)) for one in (value, 1, 4096))  # there are ranges
            else:
                is_taken = _takes(option, value)
            if isinstance(value, Path) and name in NO_FILES:
                continue
            assert is_taken == _fits(value, hints[name]), f"{kind.__name__}.{name} = {value!r}: {hints[name]}"


@pytest.mark.parametrize(("kind", "table"), TABLES, ids=_id)
def test_the_defaults_that_editors_show_are_the_defaults(kind: type, table: Mapping[str, Option]) -> None:
    assert _told_defaults(kind.__name__) == {name: option.default for name, option in table.items()}


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (ms.Socket, "SocketOptions"),
        (ms.Socket.listen, "ListenOptions"),
        (ms.Socket.dial, "DialOptions"),
        (aio.Socket, "SocketOptions"),
        (aio.Socket.listen, "ListenOptions"),
        (aio.Socket.dial, "DialOptions"),
    ],
)
def test_what_takes_options_says_which(function: Callable[..., object], kind: str) -> None:
    assert _kind_of_options(function) == kind


@pytest.mark.parametrize("name", sorted({*protocol.__all__} & {*aio.__all__}))
def test_twins_take_the_same_options(name: str) -> None:
    blocking, coroutine = getattr(protocol, name), getattr(aio, name)
    if name in ("ByteStream", "Request", "Switch", "switch"):
        return
    kind = _kind_of_options(blocking)
    assert kind == _kind_of_options(coroutine)
    assert issubclass(getattr(options, kind), dict)
    for method in ("listen", "dial"):
        assert _kind_of_options(getattr(blocking, method)) == _kind_of_options(getattr(coroutine, method))


def _kind_of_options(function: Callable[..., object]) -> str:
    annotation = inspect.signature(function).parameters["options"].annotation
    return str(annotation).removeprefix("Unpack[").removesuffix("]")


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, vars(options), {"ssl": ssl})


def _takes(option: Option, value: object) -> bool:
    try:
        option.check(value)
    except ValueError:
        return False
    return True


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is float:
        return type(value) in (int, float)
    if hint is int:
        return type(value) is int
    return isinstance(value, origin or hint or type(None))


_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_CLASSES = {node.name: node for node in ast.parse(inspect.getsource(options)).body if isinstance(node, ast.ClassDef)}


def _told_defaults(kind: str) -> dict[str, object]:
    """What the texts below the names say, those of the bases included."""
    told: dict[str, object] = {}
    for base in _CLASSES[kind].bases:
        if isinstance(base, ast.Name) and base.id in _CLASSES:
            told.update(_told_defaults(base.id))
    body = _CLASSES[kind].body
    for node, below in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert isinstance(below, ast.Expr)
            told[node.target.id] = _default_in(ast.literal_eval(below.value))
    return told


def _default_in(text: str) -> object:
    found = re.search(r"Default: (.*)\.$", " ".join(text.split()))
    assert found is not None, text
    number, _, unit = found[1].partition(" ")
    if unit:
        size = int(number) * _UNITS[unit]
        return size - 1 if size == 1 << 32 else size  # a content has less than 4 GiB
    return ast.literal_eval(number)
