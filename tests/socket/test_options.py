"""Options and addresses that cannot be used: each its own clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import multisocket as ms
from multisocket.address import Address, parse

Make = Callable[..., ms.Socket]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"recv_queue": 5}, "no option 'recv_queue'.*recv_queue_size"),
        ({"recv_queue_size": 0}, "recv_queue_size takes a whole number of messages from 1"),
        ({"recv_queue_size": "5"}, "not '5'"),
        ({"recv_queue_size": True}, "whole number"),
        ({"recv_queue_bytes": 1.5}, "bytes"),
        ({"send_queue_size": -1}, "send_queue_size"),
        ({"send_ttl": 256}, "from 1 to 255"),
        ({"send_timeout": -0.1}, "0 or more or None"),
        ({"recv_timeout": float("nan")}, "seconds"),
        ({"send_stop_timeout": None}, "0 or more, not None"),
        ({"no_recv": 1}, "True or False"),
        ({"pipe_limit": 0}, "pipe_limit"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ms.BadOption, match=match):
        ms.Socket(**options)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("inproc://a", Address("inproc", "a")),
        ("ipc:///tmp/x.sock#listen", Address("ipc", "/tmp/x.sock", (), "listen")),
        ("ipc://@abstract?a=1&b=x%20y#dial", Address("ipc", "@abstract", (("a", "1"), ("b", "x y")), "dial")),
        ("tls+tcp://host:1", Address("tls+tcp", "host:1")),
    ],
)
def test_addresses(text: str, parts: Address) -> None:
    assert parse(text) == parts


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("nothing", "no address"),
        ("://x", "no address"),
        ("ipc://", "no location"),
        ("ipc://x#both", "#dial or #listen"),
        ("ipc://x?flag", "name=value"),
        (5, "a string"),
    ],
)
def test_bad_addresses(make_socket: Make, text: Any, match: str) -> None:
    for use in (make_socket().listen, make_socket().dial, make_socket().connect):
        with pytest.raises(ms.BadAddress, match=match):
            use(text)


def test_unknown_scheme(make_socket: Make) -> None:
    for use in (make_socket().listen, make_socket().dial):
        with pytest.raises(ms.BadTransport, match=r"no transport for 'carrier'.*inproc, ipc"):
            use("carrier://pigeon")


@pytest.mark.parametrize(
    "text", ["ipc://x?reconect=true", "ipc://x?reconnect=maybe", "ipc://x?min_reconnect_time=soon"]
)
def test_bad_options_in_an_address(make_socket: Make, text: str) -> None:
    with pytest.raises(ms.BadOption):
        make_socket().dial(text)


def test_bad_dial_options(make_socket: Make) -> None:
    with pytest.raises(ms.BadOption, match="min_reconnect_time takes seconds"):
        make_socket().dial("ipc://x", min_reconnect_time=-1)
    with pytest.raises(ms.BadOption, match="no option 'backlog'"):
        make_socket().listen("ipc://x", backlog=5)


def test_direction_must_fit(make_socket: Make) -> None:
    with pytest.raises(ms.BadAddress, match="to listen, and was given to dial"):
        make_socket().dial("inproc://x#listen")


def test_paths_that_cannot_be_bound(make_socket: Make, folder: Path) -> None:
    (folder / "file").write_text("precious")
    with pytest.raises(ms.BadAddress, match="no socket"):
        make_socket().listen(f"ipc://{folder}/file")
    with pytest.raises(ms.BadAddress, match="no socket"):
        make_socket().dial(f"ipc://{folder}/file")
    assert (folder / "file").read_text() == "precious"
    for use in (make_socket().listen, make_socket().dial):
        with pytest.raises(ms.BadAddress, match=r"\d+ bytes, a socket's has at most 107"):
            use(f"ipc://{folder}/{'x' * 108}")
    with pytest.raises(ms.BadAddress, match="folder"):
        make_socket().listen(f"ipc://{folder}/none/s")


def test_errors_are_also_the_builtin_ones() -> None:
    assert issubclass(ms.Timeout, TimeoutError)
    assert issubclass(ms.ConnectionRefused, ConnectionRefusedError)
    assert all(issubclass(getattr(ms, name), ms.Error) for name in ("Closed", "BadOption", "OutOfSharedMemory"))


def test_use_after_close() -> None:
    sock = ms.Socket()
    sock.close()
    sock.close()
    assert sock.closed
    uses: list[Callable[[], object]] = [
        lambda: sock.send(b""),
        lambda: sock.send_many([b""]),
        lambda: sock.send_all(b""),
        lambda: sock.send_to((1,), b""),
        lambda: sock.send_msg(ms.Message()),
        sock.recv,
        sock.recv_msg,
        lambda: sock.recv_many(1),
        lambda: sock.listen("inproc://x"),
        lambda: sock.dial("inproc://x"),
        lambda: sock.pipes,
        sock.stats,
        sock.__reduce__,
    ]
    for use in uses:
        with pytest.raises(ms.Closed, match="closed"):
            use()
