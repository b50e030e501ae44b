"""Messages as bytes, against bytes of another implementation (``wire.json``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import multisocket as ms
from multisocket.message import CONTROL, TO_ALL, TO_DESTINATION, Message, decode, encode

GOLDEN = json.loads((Path(__file__).parent / "wire.json").read_text())

SENT = [Message(b"hello"), Message(b"all", send_type=TO_ALL), Message(b"ctl", ttl=7, flags=CONTROL)]
REPLIES = [
    Message(b"re:hello", send_type=TO_DESTINATION, destination=(1,)),
    Message(b"re:abc", send_type=TO_DESTINATION, destination=(1, 10, 11)),
    Message(b"re:hello", send_type=TO_DESTINATION, source=(1,), destination=(2,), ttl=15),
]


def fields(msg: Message) -> dict[str, Any]:
    return {name: getattr(msg, name) for name in ("content", "flags", "ttl", "source", "destination")}


@pytest.mark.parametrize(
    ("msg", "wire"),
    [
        *zip(SENT, (one["hex"] for one in GOLDEN["sent"]), strict=True),
        *zip(REPLIES, (one["out"] for one in GOLDEN["replies"]), strict=True),
    ],
)
def test_golden_bytes(msg: Message, wire: str) -> None:
    assert encode(msg).hex() == wire
    decoded = decode(bytes.fromhex(wire))
    assert decoded is not None
    assert fields(decoded[0]) == fields(msg)
    assert decoded[1] == len(wire) // 2


paths = st.lists(st.integers(0, 2**32 - 1), max_size=255)


@given(
    st.binary(max_size=300),
    st.integers(0, 2),
    paths,
    paths,
    st.integers(0, 255),
    st.integers(0, 63),
    st.binary(),
)
def test_round_trip(
    content: bytes, kind: int, source: list[int], destination: list[int], ttl: int, flags: int, behind: bytes
) -> None:
    msg = Message(content, send_type=kind, source=source, destination=destination, ttl=ttl, flags=flags & ~3)
    wire = encode(msg)
    decoded = decode(wire + behind)
    assert decoded is not None
    assert fields(decoded[0]) == fields(msg)
    assert decoded[1] == len(wire)
    assert all(decode(wire[:n]) is None for n in range(0, len(wire), 7))


@given(st.binary(max_size=600))
def test_any_bytes_are_a_message_or_too_few(data: bytes) -> None:
    decoded = decode(data)
    assert decoded is None or encode(decoded[0]) == data[: decoded[1]]


@pytest.mark.parametrize(
    "bad",
    [
        {"send_type": 3},
        {"ttl": 256},
        {"ttl": -1},
        {"flags": 256},
        {"destination": [2**32]},
        {"destination": [-1]},
        {"source": ["1"]},
        {"source": range(256)},
    ],
)
def test_bad_messages(bad: dict[str, Any]) -> None:
    with pytest.raises(ms.BadMessage):
        Message(b"", **bad)
