"""The browser example: its client's bytes, and the page in a real browser."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from conftest import DEADLINE, wait_until

FOLDER = Path(__file__).parents[1] / "examples" / "browser"
GOLDEN = Path(__file__).parent / "wire" / "wire.json"

_CHECK = """
import { encode, decode } from "FOLDER/multisocket.js";
import { readFileSync } from "node:fs";
import assert from "node:assert";
const golden = JSON.parse(readFileSync("GOLDEN"));
const frames = [...golden.sent.map((one) => one.hex), ...golden.replies.flatMap((one) => [one.in, one.out])];
for (const hex of frames) {
  const message = decode(new Uint8Array(Buffer.from(hex, "hex")));
  assert.strictEqual(Buffer.from(encode(message)).toString("hex"), hex);
}
const reply = { content: "re:abc", flags: 2, destination: [1, 10, 11] };
assert.strictEqual(Buffer.from(encode(reply)).toString("hex"), golden.replies[1].out);
assert.throws(() => decode(new Uint8Array(9)));
console.log(frames.length);
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_bytes_of_the_client(folder: Path) -> None:
    script = folder / "check.mjs"
    script.write_text(_CHECK.replace("FOLDER", str(FOLDER)).replace("GOLDEN", str(GOLDEN)))
    (folder / "package.json").write_text("{}")
    done = subprocess.run(["node", script], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 9


@pytest.fixture
def page() -> Iterator[str]:
    """The address of the page of a running server."""
    server = subprocess.Popen(
        [sys.executable, FOLDER / "server.py", "--workers", "2"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=DEADLINE)
    assert server.returncode == 0


class Browser:
    """A tab, by the browser's debugging protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._last = 0

    def value(self, expression: str) -> Any:
        """What JavaScript gives for it in the page."""
        self._last += 1
        asked = {"expression": expression, "returnByValue": True}
        self._connection.send(json.dumps({"id": self._last, "method": "Runtime.evaluate", "params": asked}))
        while True:
            answer = json.loads(self._connection.recv(DEADLINE))
            if answer.get("id") == self._last:
                return answer["result"]["result"].get("value")


@pytest.fixture
def browser(folder: Path, page: str) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
    running = subprocess.Popen(
        [program, *flags, f"--user-data-dir={folder}/profile", page], stderr=subprocess.DEVNULL, cwd=folder
    )
    try:
        told = folder / "profile" / "DevToolsActivePort"
        wait_until(lambda: told.exists() and told.read_text().count("\n"), "the browser runs")
        port = told.read_text().splitlines()[0]

        def find_tab() -> str | None:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=DEADLINE) as answer:
                tabs = [tab for tab in json.load(answer) if tab["url"] == page]
            return tabs[0]["webSocketDebuggerUrl"] if tabs else None

        tab = wait_until(find_tab, "the page is loading")
        with connect(tab, open_timeout=DEADLINE, max_size=None) as connection:
            yield Browser(connection)
    finally:
        running.kill()
        running.wait()


def test_a_page_shows_a_pipeline_and_asks_it(browser: Browser) -> None:
    cells = "[...document.querySelectorAll('tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    rows = f"Object.fromEntries({cells})"
    wait_until(lambda: browser.value("document.getElementById('state')?.textContent") == "connected", "it is connected")
    first = wait_until(lambda: browser.value(rows), "statistics are shown")
    assert first["workers"] == "2"
    assert first["pages that watch"] == "1"
    wait_until(lambda: browser.value(rows)["primes found"] != first["primes found"], "they are live")
    for number, answer in ((1000003, "1000003 is a prime"), (1000005, "1000005 is no prime")):
        browser.value(f"document.getElementById('number').value = {number}")
        browser.value("document.querySelector('button').click()")
        wait_until(
            lambda answer=answer: browser.value("document.getElementById('answer').textContent") == answer, "it answers"
        )


def test_pages_of_others_are_refused(page: str) -> None:
    with urllib.request.urlopen(page, timeout=DEADLINE) as answer:
        text = answer.read().decode()
    port = text.split('":" + ')[1].split(")")[0]
    with pytest.raises(Exception, match="403"), connect(f"ws://127.0.0.1:{port}/live", origin="http://evil.example"):
        pass
