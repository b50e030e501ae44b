"""A wait ends in time although there is always something else to take: here each look finds one message more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, wait_until
from multisocket.protocol import Rep, Req, Sub, Surveyor
from multisocket.protocol.pubsub import Publication

TIMEOUTS = [0.05, 0.0]


def flood(sock: ms.Socket, pour: Callable[[], object]) -> None:
    """Before each message that is taken from the Socket, another one comes; but not for ever."""
    end = time.monotonic() + DEADLINE / 2
    recv_msg = sock.recv_msg

    def poured(*args: Any, **options: Any) -> ms.Message:
        if time.monotonic() < end:
            pour()
        return recv_msg(*args, **options)

    sock.recv_msg = poured  # type: ignore[method-assign]


def ends(wait: Callable[[], object]) -> None:
    """It is over long before the flood is."""
    began = time.monotonic()
    with contextlib.suppress(ms.Timeout):
        wait()
    assert time.monotonic() - began < DEADLINE / 3


def pipe_of(sock: ms.Socket) -> list[int]:
    return [wait_until(lambda: sock.pipes, "it is connected")[0].id]


@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_a_request(ipc: str, timeout: float) -> None:
    with ms.Socket() as other, Req() as req:
        other.listen(ipc)
        req.dial(ipc)
        path = pipe_of(other)
        flood(req.socket, lambda: other.send_to(path, b"\0\0\0\0late"))
        ends(lambda: req.request(b"?", timeout))


@pytest.mark.parametrize("way", ["argument", "option"])
@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_requests_that_are_none(ipc: str, timeout: float, way: str) -> None:
    with ms.Socket() as other, Rep(recv_timeout=timeout) as rep:
        rep.listen(ipc)
        other.dial(ipc)
        flood(rep.socket, lambda: other.send(b"x"))
        ends(lambda: rep.recv(timeout) if way == "argument" else rep.recv())


@pytest.mark.parametrize("way", [lambda sub: sub.recv(), lambda sub: sub.recv_many(1)])
@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_publications(ipc: str, way: Callable[[Sub], object], timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    end = time.monotonic() + DEADLINE / 2
    with ms.Socket() as other:
        learn = Sub._learn

        def poured(sub: Sub, body: bytes) -> Publication | None:
            if time.monotonic() < end:
                other.send_all(b"\0\1bnot wanted")
            return learn(sub, body)

        monkeypatch.setattr(Sub, "_learn", poured)
        with Sub(["a"], recv_timeout=timeout) as sub:
            other.listen(ipc)
            sub.dial(ipc)
            wait_until(lambda: other.pipes, "it is connected")
            other.send_all(b"\0\1bnot wanted")
            other.send_all(b"\0\1bnot wanted")
            ends(lambda: way(sub))


def test_a_survey(ipc: str) -> None:
    with ms.Socket() as other, Surveyor() as surveyor:
        other.listen(ipc)
        surveyor.dial(ipc)
        path = pipe_of(other)
        flood(surveyor.socket, lambda: other.send_to(path, b"\0\0\0\0late"))
        ends(lambda: list(surveyor.survey(b"?", 0.05)))


def test_a_survey_with_ever_more_responses(ipc: str) -> None:
    with ms.Socket() as other, Surveyor() as surveyor:
        other.listen(ipc)
        surveyor.dial(ipc)
        responses = surveyor.survey(b"?", 0.2)
        question = other.recv_msg(DEADLINE)
        flood(surveyor.socket, lambda: other.send_to(question.source, question.content[:4] + b"!"))
        ends(lambda: list(responses))


def test_what_is_there_is_found_behind_what_is_not_wanted(ipc: str) -> None:
    """Without waiting at all."""
    with ms.Socket() as other, Sub(["a"]) as sub, Rep() as rep:
        other.listen(ipc)
        sub.dial(ipc)
        wait_until(lambda: other.pipes, "it is connected")
        other.send_many([b"\0\1bno"] * 50 + [b"\0\1ayes"])
        assert sub.recv(0) == (b"a", b"yes")
        other.send_many([b"\0\1bno"] * 50 + [b"\0\1ayes"])
        assert sub.recv_many(10, 0) == [(b"a", b"yes")]
        rep.listen(ipc + "-rep")
        with ms.Socket() as asking:
            asking.dial(ipc + "-rep")
            asking.send_many([b"no"] * 50 + [b"\0\0\0\1yes"])
            assert rep.recv(0).content == b"yes"
