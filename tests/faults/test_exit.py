"""The end of the interpreter: no thread is started, nothing is printed, the exit code is right, nothing is left behind;
whatever was made, whether it was closed, and however the end comes."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conftest import DEADLINE, START_METHODS, Processes, free_port, names_in_shm

# What a program makes. `made` are those things that can be closed.
MAKES = {
    "a Socket": "made = [ms.Socket()]",
    "inproc": "made = pair('inproc://exit')",
    "ipc": "made = pair(IPC)",
    "tcp": "made = pair('tcp://127.0.0.1:0')",
    "tcp, a name": "made = pair('tcp://localhost:0')",
    "raw tcp": "made = [ms.Socket()]; made[0].listen('tcp://127.0.0.1:0', raw=True)",
    "raw ipc": "made = [ms.Socket()]; made[0].listen(IPC, raw=True)",
    "ipc, nobody comes": "made = [ms.Socket()]; made[0].listen(IPC)",
    "ipc, nobody is there": "made = [ms.Socket()]; made[0].dial(IPC, dial_async=True)",
    "tcp, nobody is there": "made = [ms.Socket()]; made[0].dial(NOBODY, dial_async=True, max_reconnect_time=0.1)",
    "a large content that is read in place": """
        made = pair(IPC)
        made[0].send(bytes(1 << 20))
        kept = made[1].recv_msg(copy=False)
        """,
    "messages that nobody takes": "made = [ms.Socket(send_stop_timeout=0.05)]; made[0].listen(IPC); made[0].send(b'x')",
    "Push and Pull": "made = [Push(), Pull()]; meet(*made); made[0].send(b'x'); made[1].recv()",
    "Req and Rep": """
        made = [Rep(lambda content: content), Req()]
        meet(*made)
        made[0].start()
        made[1].request(b'x')
        """,
    "a request without a reply": """
        made = [Rep(), Req()]
        meet(*made)
        future = made[1].request_async(b'x')
        """,
    "Pub and Sub": "made = [Pub(), Sub([b'a'])]; meet(*made)",
    "Bus": "made = [Bus(), Bus()]; meet(*made)",
    "Pair": "made = [Pair(), Pair()]; meet(*made)",
    "Surveyor and Respondent": """
        made = [Surveyor(), Respondent(lambda content: content)]
        meet(*made)
        made[1].start()
        list(made[0].survey(b'x', deadline=0.05))
        """,
    "Stream": """
        made = [Stream(), Stream()]
        meet(*made)
        accepted = []
        threading.Thread(target=lambda: accepted.append(made[0].accept()), daemon=True).start()
        stream = made[1].connect(timeout=5.0)
        stream.write(b'x')
        """,
    "a switch": "made = [ms.Socket(), ms.Socket()]; made[0].listen(IPC); made.append(switch(*made))",
    "a Pool": "made = [Pool(2)]",
    "a Pool that has worked": "made = [Pool(2)]; made[0].map(abs, range(100))",
    "a Pool at work": "made = [Pool(2)]; made[0].map_async(time.sleep, [60] * 10)",
    "an imap that nobody reads": "made = [Pool(2)]; results = made[0].imap(abs, itertools.count())",
    "an Executor": "made = [Executor(2)]",
    "an Executor that has worked": "made = [Executor(2)]; list(made[0].map(abs, range(100)))",
    "an Executor at work": "made = [Executor(2)]; made[0].submit(time.sleep, 0.05)",
    "a pipeline": "made = [Pipeline(abs).run(range(10))]; next(made[0])",
    "a pipeline without end": "made = [Pipeline(Stage(abs, workers=2)).run(itertools.count())]; next(made[0])",
}
if importlib.util.find_spec("joblib"):
    MAKES["joblib"] = """
        import joblib, multisocket.pool.joblib
        made = []
        joblib.Parallel(2, backend="multisocket")(joblib.delayed(abs)(i) for i in range(10))
        """

# How a program ends, and its exit code.
ENDS = {
    "end": ("", 0),
    "close": ("for one in made: (one.shutdown if isinstance(one, Executor) else one.close)()", 0),
    "dropped": ("del made", 0),
    "exit": ("sys.exit(3)", 3),
    "raise": ("raise ValueError('on purpose')", 1),
}

PROGRAM = """
import itertools, multiprocessing, os, sys, threading, time, warnings
import multisocket as ms
from multisocket import names
from multisocket.pool import Executor, Pipeline, Pool, Stage
from multisocket.protocol import (
    Bus, Pair, Pub, Pull, Push, Rep, Req, Respondent, Stream, Sub, Surveyor, switch
)

IPC, NOBODY, METHOD = sys.argv[1:]

def pair(address):
    one, other = ms.Socket(), ms.Socket()
    other.dial(one.listen(address).address)
    one.send(b"x")
    assert other.recv() == b"x"
    return [one, other]

def meet(one, other):
    one.listen(IPC)
    other.dial(IPC)

def main():
    global made
{make}
    print(os.path.basename(names.guard_path()).removesuffix(".guard"), flush=True)
    globals().update(locals())
{end}

if __name__ == "__main__":
    if METHOD:
        multiprocessing.set_start_method(METHOD)
{run}
"""

RUNS = {
    "main": "main()",
    "thread": "thread = threading.Thread(target=main); thread.start(); thread.join()",
    "child": """
        child = multiprocessing.Process(target=main)
        child.start()
        child.join()
        sys.exit(child.exitcode)
        """,
}


def _indented(text: str, by: int) -> str:
    return textwrap.indent(textwrap.dedent(text), " " * by) or " " * by + "pass"


def _program(folder: Path, make: str, end: str, run: str) -> Path:
    path = folder / "program.py"
    path.write_text(
        PROGRAM.format(make=_indented(MAKES[make], 4), end=_indented(ENDS[end][0], 4), run=_indented(RUNS[run], 4))
    )
    return path


def _check_end(processes: Processes, folder: Path, program: Path, end: str, method: str = "") -> None:
    arguments = [f"ipc://{folder}/s", f"tcp://localhost:{free_port()}", method]
    process = processes.started(
        subprocess.Popen(
            [sys.executable, program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    )
    out, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == ENDS[end][1], errors
    if end == "raise":
        assert re.fullmatch(r"(Process .*:\n)?Traceback \(most recent call last\):\n(  .*\n)*ValueError: .*\n", errors)
    else:
        assert errors == ""
    prefix = out.strip()
    assert re.fullmatch("ms-[0-9a-f]{12}", prefix)
    assert not [name for name in names_in_shm() if name.startswith(prefix)]


def _in_turns(ways: list[str]) -> list[tuple[str, str]]:
    """Everything that can be made, with one of these each: all with all would be 300 programs."""
    return list(zip(MAKES, itertools.cycle(ways), strict=False))


@pytest.mark.parametrize(("make", "end"), [*_in_turns(["end"]), *_in_turns(["close", "dropped", "exit", "raise"])])
def test_of_a_program(processes: Processes, folder: Path, make: str, end: str) -> None:
    _check_end(processes, folder, _program(folder, make, end, "main"), end)


@pytest.mark.parametrize("make", list(MAKES)[::3])
def test_of_a_program_whose_thread_made_it(processes: Processes, folder: Path, make: str) -> None:
    _check_end(processes, folder, _program(folder, make, "end", "thread"), "end")


@pytest.mark.parametrize(("make", "method"), _in_turns(START_METHODS))
def test_of_a_child(processes: Processes, folder: Path, make: str, method: str) -> None:
    _check_end(processes, folder, _program(folder, make, "end", "child"), "end", method)


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("make", ["a Pool at work", "an Executor at work", "a pipeline without end"])
def test_with_each_start_method(processes: Processes, folder: Path, make: str, method: str) -> None:
    _check_end(processes, folder, _program(folder, make, "end", "main"), "end", method)
