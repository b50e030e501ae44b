"""Surveys."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, START_METHODS, Processes, wait_until
from multisocket.protocol import Respondent, Surveyor

Start = Callable[..., threading.Thread]


def connect(surveyor: Surveyor, address: str, *respondents: Respondent) -> None:
    surveyor.listen(address)
    for respondent in respondents:
        respondent.dial(address)
    wait_until(lambda: len(surveyor.socket.pipes) == len(respondents), "all are connected")


def test_all_who_want_answer(address: str) -> None:
    def raises(content: bytes) -> Any:
        raise ValueError(content)

    handlers = [lambda content: content + b"1", lambda content: content + b"2", lambda content: None, raises]
    respondents = [Respondent(handler) for handler in handlers]
    with Surveyor() as surveyor:
        connect(surveyor, address, *respondents)
        for respondent in respondents:
            respondent.start()
        for question in (b"a", b"b"):
            assert sorted(surveyor.survey(question, 0.3)) == [question + b"1", question + b"2"]
        for respondent in respondents:
            respondent.close()


def test_responses_come_before_the_deadline(address: str) -> None:
    with Surveyor() as surveyor, Respondent() as one, Respondent() as other:
        connect(surveyor, address, one, other)
        survey = surveyor.survey(b"?", DEADLINE)
        one.recv(DEADLINE).reply(b"one")
        assert next(survey) == b"one"
        other.recv(DEADLINE).reply(b"other")
        assert next(survey) == b"other"
        survey.close()  # type: ignore[attr-defined]
        assert not surveyor._answers._askers


def test_late_responses_are_dropped(address: str) -> None:
    with Surveyor() as surveyor, Respondent() as respondent:
        connect(surveyor, address, respondent)
        assert list(surveyor.survey(b"1", 0.01)) == []
        late = respondent.recv(DEADLINE)
        survey = surveyor.survey(b"2", DEADLINE)
        late.reply(b"late")
        respondent.recv(DEADLINE).reply(b"in time")
        assert next(survey) == b"in time"


def test_several_threads_survey_at_once(address: str, threads: Start) -> None:
    with Surveyor() as surveyor, Respondent(lambda content: content) as one, Respondent(lambda content: content) as two:
        connect(surveyor, address, one, two)
        one.start()
        two.start()
        found: dict[int, list[bytes]] = {}

        def ask(number: int) -> None:
            survey = surveyor.survey(b"%d" % number, DEADLINE)
            found[number] = [next(survey), next(survey)]

        for thread in [threads(ask, number) for number in range(20)]:
            thread.join(DEADLINE)
        assert found == {number: [b"%d" % number] * 2 for number in range(20)}


def test_a_survey_that_is_given_up_is_forgotten(address: str) -> None:
    with Surveyor() as surveyor, Respondent(lambda content: content) as respondent:
        connect(surveyor, address, respondent)
        respondent.start()
        for _ in range(10):
            surveyor.survey(b"nobody looks", DEADLINE)
        for response in surveyor.survey(b"one is enough", DEADLINE):
            assert response == b"one is enough"
            break
        with pytest.raises(TypeError):
            surveyor.survey("no bytes")  # type: ignore[arg-type]
        wait_until(lambda: gc.collect() is not None and not surveyor._answers._askers, "all are forgotten")


def test_many_responses_to_several_threads(address: str, threads: Start) -> None:
    """One thread receives for the others while they take theirs: none is lost, none comes twice, none is somebody
    else's."""
    n = 300
    with Surveyor() as surveyor, Respondent() as respondent:
        connect(surveyor, address, respondent)
        found: dict[int, list[bytes]] = {}

        def ask(number: int) -> None:
            survey = surveyor.survey(b"%d" % number, DEADLINE)
            found[number] = [next(survey) for _ in range(n)]

        def answer() -> None:
            request = respondent.recv(DEADLINE)
            for i in range(n):
                request.reply(b"%s/%d" % (request.content, i), DEADLINE)

        started = [threads(answer) for _ in range(8)] + [threads(ask, number) for number in range(8)]
        for thread in started:
            thread.join(2 * DEADLINE)
        assert found == {number: [b"%d/%d" % (number, i) for i in range(n)] for number in range(8)}


def test_no_handler_ends_its_respondent(address: str) -> None:
    def handler(content: bytes) -> Any:
        if content == b"raise":
            raise ms.Closed("something else")
        return {b"number": 7, b"text": "x"}.get(content, content)

    with Surveyor() as surveyor, Respondent(handler) as respondent:
        connect(surveyor, address, respondent)
        respondent.start()
        for content in (b"raise", b"number", b"text"):
            assert list(surveyor.survey(content, 0.05)) == []
        assert next(surveyor.survey(b"goes on", DEADLINE)) == b"goes on"


def test_a_respondent_that_dies(ipc: str, processes: Processes) -> None:
    """The others' responses come."""
    with Surveyor() as surveyor, Respondent(_shout) as other:
        surveyor.listen(ipc)
        other.dial(ipc)
        other.start()
        dying = processes.start(_hold, ipc)
        wait_until(lambda: len(surveyor.socket.pipes) == 2, "both are connected")
        survey = surveyor.survey(b"x", DEADLINE)
        dying.kill()
        assert next(survey) == b"X"
        wait_until(lambda: len(surveyor.socket.pipes) == 1, "it is gone")
        assert next(surveyor.survey(b"y", DEADLINE)) == b"Y"


def _hold(address: str) -> None:
    with Respondent() as respondent:
        respondent.dial(address)
        for request in respondent:
            assert request.content


def test_only_where_it_was_made(ipc: str, processes: Processes) -> None:
    with Surveyor() as surveyor, Respondent(_shout) as respondent:
        connect(surveyor, ipc, respondent)
        respondent.start()

        def child() -> None:
            with pytest.raises(ms.NotSupported, match="make one here"):
                surveyor.survey(b"x")

        processes.join(processes.start(child))
        assert next(surveyor.survey(b"x", DEADLINE)) == b"X"


def test_nonsense_is_dropped(address: str) -> None:
    with Surveyor() as surveyor, Respondent(_shout) as respondent:
        connect(surveyor, address, respondent)
        respondent.start()
        for body in (b"", b"abc"):
            surveyor.socket.send_all(body)
        wait_until(lambda: respondent.socket.pipes, "it is connected")
        path = (respondent.socket.pipes[0].id,)
        for body in (b"", b"a", b"\0\0\0\0nobody has asked this"):
            respondent.socket.send_to(path, body)
        assert next(surveyor.survey(b"x", DEADLINE)) == b"X"


def test_nobody_is_there() -> None:
    with Surveyor() as surveyor:
        assert list(surveyor.survey(b"?", 0.01)) == []


def test_somebody_has_no_room(address: str) -> None:
    with Surveyor() as surveyor, Respondent(recv_queue_size=1) as slow:
        connect(surveyor, f"inproc://{address}", slow)
        surveyor.survey(b"1", DEADLINE)
        with pytest.raises(ms.Timeout, match="room"):
            surveyor.survey(b"2", 0.01)


def test_closing_ends_a_survey(address: str, threads: Start) -> None:
    with Surveyor() as surveyor, Respondent() as respondent:
        connect(surveyor, address, respondent)
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                list(surveyor.survey(b"?", DEADLINE))
            except ms.Closed as error:
                errors.append(error)

        thread = threads(ask)
        respondent.recv(DEADLINE)
        surveyor.close()
        thread.join(DEADLINE)
        assert len(errors) == 1
        with pytest.raises(ms.Closed):
            surveyor.survey(b"?")


def _shout(content: bytes) -> bytes:
    return content.upper()


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_share_a_respondent(address: str, processes: Processes, method: str) -> None:
    with Surveyor() as surveyor, Respondent(_shout) as respondent:
        connect(surveyor, address, respondent)
        workers = [processes.start(respondent.serve, method=method) for _ in range(2)]
        assert next(surveyor.survey(b"x", DEADLINE)) == b"X"
        respondent.close()
        processes.join(*workers)
        with pytest.raises(ms.NotSupported):
            pickle.dumps(surveyor)
