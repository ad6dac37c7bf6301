"""A headless Chromium over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol), for tests of pages.

`--window-size` does not do: headless Chromium lays out at 500 pixels at least and crops the picture. The protocol sets the
width and the colour scheme that the page sees.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

HEIGHT = 1200  # pixels of a page that are looked at
PATIENCE = 60.0  # seconds for anything the browser has to do


class Page:
    """One page; everything it complains about is kept."""

    def __init__(self, connection: ClientConnection):
        self.connection, self.count, self.complaints = connection, 0, []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        self.connection.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv(timeout=PATIENCE))
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self.listen(message)

    def listen(self, event: dict[str, Any]) -> None:
        method, details = event["method"], event["params"]
        if method == "Runtime.exceptionThrown" or (method == "Log.entryAdded" and details["entry"]["level"] == "error"):
            self.complaints.append(details)
        if method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.complaints.append(details)

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def show(self, path: Path, width: int, dark: bool, ready: str) -> None:
        """Open a file and wait until the expression `ready` holds."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=HEIGHT, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints.clear()
        self.call("Page.navigate", url=path.as_uri())
        end = time.monotonic() + PATIENCE
        while not self.evaluate(ready):
            assert time.monotonic() < end, (f"{path} is not ready", self.complaints)
            time.sleep(0.05)
        assert self.evaluate("innerWidth") == width
        assert self.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == dark

    def picture(self) -> Image.Image:
        """The upper `HEIGHT` pixels of the page, in grey."""
        data = self.call("Page.captureScreenshot")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("L")


def find_browser() -> str:
    """Skips the test where there is none, unless REPORT_NEEDS_BROWSER says that there must be."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        if os.environ.get("REPORT_NEEDS_BROWSER"):
            pytest.fail("no chromium here, and REPORT_NEEDS_BROWSER is set")
        pytest.skip("no chromium on this machine")
    return browser


@contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    command = [find_browser(), *flags, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(first_page(profile / "DevToolsActivePort"), max_size=None) as connection:
            yield Page(connection)
    finally:
        process.kill()
        process.wait()


def first_page(port_file: Path) -> str:
    """Address of the browser's first page, once the browser listens."""
    end = time.monotonic() + PATIENCE
    while not (port_file.exists() and "\n" in port_file.read_text()):
        assert time.monotonic() < end, "the browser does not start"
        time.sleep(0.05)
    port = port_file.read_text().split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
        return next(target["webSocketDebuggerUrl"] for target in json.load(answer) if target["type"] == "page")
