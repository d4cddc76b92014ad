"""Chromium without a window, driven over a pipe by its DevTools protocol. As much of it as the page's tests need."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PATIENCE_S = 300.0
_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One browser with one page. A context manager."""

    def __init__(self, profile: Path) -> None:
        program = next((found for found in map(shutil.which, _NAMES) if found), None)
        if program is None:
            raise FileNotFoundError("no Chromium on this machine: apt install chromium")
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe --disable-dev-shm-usage "
            "--no-proxy-server --host-resolver-rules='MAP *.example 127.0.0.1'"  # as their owner may have it
        )
        line = f'exec "$0" {flags} --user-data-dir="$1" about:blank 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, program, str(profile)],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        self._buffer = b""
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        """Errors of scripts, and what the content policy forbade."""
        self.asked: list[str] = []
        """Addresses that the page asked."""
        target = self._call("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:  # its profile is nobody's
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def size(self, width: int, height: int) -> None:
        """Of the window, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._call("Emulation.setDeviceMetricsOverride", metrics)

    def colours(self, scheme: str) -> None:
        """`light` or `dark`."""
        self._call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", {"url": url})
        self.wait_for("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression; what it promises is waited for."""
        found = self._call("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until it is true."""
        give_up_s = time.monotonic() + _PATIENCE_S
        while not self.value(expression):
            assert time.monotonic() < give_up_s, f"never true: {expression}; the page says: {self.text()}"
            time.sleep(0.05)

    def text(self) -> str:
        """What a reader sees."""
        return str(self.value("document.body.innerText"))

    def picture(self, path: Path) -> None:
        """The whole page as a PNG file."""
        found = self._call("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(found["data"]))

    def _call(self, method: str, parameters: dict[str, Any] | None = None, *, session: str | None = "") -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["source"] in ("security", "javascript"):
                self.complaints.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(parameters["request"]["url"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], _PATIENCE_S)
            data = os.read(self._in, 1 << 16) if ready else b""
            assert data, f"the browser says nothing (status {self._process.poll()})"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found
