"""A headless Chromium through its WebDriver, as far as these tests need it."""

import base64
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.serve.conftest import until

DRIVER = shutil.which("chromedriver")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One tab; elements are named by their ids."""

    def __init__(self, client: httpx2.Client, session: str) -> None:
        self._client, self._session = client, f"/session/{session}"

    def _call(self, path: str, **body: Any) -> Any:
        response = self._client.post(self._session + path, json=body)
        assert response.status_code == 200, response.text
        return response.json()["value"]

    def open(self, url: str, width: int = 1440, height: int = 900) -> None:
        """Go to a page, in a window of this size inside."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
        self._call("/url", url=url)

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own."""
        return self._call("/goog/cdp/execute", cmd=command, params=parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._call("/execute/sync", script=script, args=[*arguments])

    def text(self, name: str) -> str:
        """An element's text."""
        return str(self.run("return document.getElementById(arguments[0]).textContent", name))

    def type(self, name: str, text: str) -> None:
        """Press keys while an element has the focus."""
        found = self._call("/element", using="css selector", value=f"#{name}")[_ELEMENT]
        self._call(f"/element/{found}/value", text=text)

    def screenshot(self, file: Path) -> None:
        """The whole page as a picture."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {**size, "scale": 1}
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a fresh profile."""
    assert DRIVER is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([DRIVER, f"--port={port}", "--silent"], stdout=subprocess.DEVNULL)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until(lambda: _is_up(client))
            arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"]
            options = {"goog:chromeOptions": {"args": arguments}}
            wanted = {
                "capabilities": {
                    "alwaysMatch": {**options, "goog:loggingPrefs": {"browser": "ALL"}}
                }
            }
            started = client.post("/session", json=wanted).json()["value"]
            session = started["sessionId"]
            yield Browser(client, session)
            client.delete(f"/session/{session}")
    finally:
        process.terminate()
        process.wait()


def _is_up(client: httpx2.Client) -> bool:
    try:
        return bool(client.get("/status").json()["value"]["ready"])
    except httpx2.TransportError:
        return False
