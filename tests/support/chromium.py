"""A headless Chromium, spoken to through two pipes."""

import itertools
import json
import os
import select
import shutil
import subprocess
import time

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
)
SECONDS = 60


class Page:
    """One page of a browser of its own.

    Args:
        folder: path, for the browser's files.
    """

    def __init__(self, folder):
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        pipes = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", PROGRAM, "--headless=new"]
            + ["--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
            + ["--disable-dev-shm-usage", f"--user-data-dir={folder}"]
            + ["--window-size=1000,800", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._ids = itertools.count(1)
        self._rest = b""
        self._session = None
        self.problems = []  # what the browser refused or failed at
        targets = self._call("Target.getTargets")["targetInfos"]
        (target,) = [t for t in targets if t["type"] == "page"]
        self._session = self._call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, address):
        self._call("Page.navigate", url=address)
        self.wait_for("document.readyState == 'complete'")

    def run(self, script):
        """The value of a JavaScript expression."""
        result = self._call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script):
        end = time.monotonic() + SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.02)
        return value

    def type(self, text):
        self._call("Input.insertText", text=text)

    def press_enter(self):
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                windowsVirtualKeyCode=13,
                text="\r" if kind == "keyDown" else "",
            )

    def picture(self):
        """The page as base64 of a PNG."""
        return self._call("Page.captureScreenshot")["data"]

    def _call(self, method, **parameters):
        message = {"id": next(self._ids), "method": method}
        message["params"] = parameters
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != message["id"]:
            if _is_problem(answer):
                self.problems.append(answer["params"])
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], SECONDS)[0], "no answer"
            part = os.read(self._in, 65536)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


def _is_problem(event):
    if event["method"] == "Log.entryAdded":
        return event["params"]["entry"]["level"] in ("warning", "error")
    return event["method"] == "Runtime.exceptionThrown"
