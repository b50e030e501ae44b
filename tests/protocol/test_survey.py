"""Surveys."""

from __future__ import annotations

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
