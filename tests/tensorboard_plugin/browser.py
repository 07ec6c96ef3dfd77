"""Headless Chromium, spoken to in its DevTools protocol: no driver is needed beside the browser itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--disable-extensions", "--disable-default-apps", "--no-default-browser-check"),
)


class PageError(Exception):
    """A script of a test that failed in the page."""


class Browser:
    """One page of a browser.

    Attributes:
        errors: what the page wrote to the console as an error, and exceptions that nothing caught.
        requests: every address that the page asked for.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse, downloads: Path
    ) -> None:
        self._loop, self._socket = loop, socket
        self._sent = 0
        self._frames: dict[str, int] = {}  # execution contexts by frame
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.downloads = downloads

    def send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        return self._loop.run_until_complete(self._send(method, parameters))

    async def _send(self, method: str, parameters: dict[str, Any]) -> Any:
        self._sent += 1
        number = self._sent
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await asyncio.wait_for(self._socket.receive(), 60)).data)
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        method = message.get("method")
        if method == "Runtime.executionContextCreated":
            context = parameters["context"]
            if context["auxData"].get("isDefault"):
                self._frames[context["auxData"]["frameId"]] = context["id"]
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(" ".join(str(argument.get("value")) for argument in parameters["args"]))

    def open(self, address: str) -> None:
        """Open an address, from scratch even if only the part after ``#`` differs."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=address)

    def run(self, script: str, frame: str | None = None) -> Any:
        """Return what an expression is in the page, or in a frame whose address holds a text; promises are awaited."""
        where = {} if frame is None else {"contextId": self._context(frame)}
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, **where)
        if "exceptionDetails" in answer:
            raise PageError(answer["exceptionDetails"]["exception"].get("description", script))
        return answer["result"].get("value")

    def _context(self, frame: str) -> int:
        tree = self.send("Page.getFrameTree")["frameTree"]
        for child in tree.get("childFrames", ()):
            context = self._frames.get(child["frame"]["id"])
            if frame in child["frame"]["url"] and context is not None:
                return context
        raise PageError(f"no frame with {frame!r} in its address")

    def wait(self, script: str, frame: str | None = None, seconds: float = 30.0) -> Any:
        """Return what an expression is as soon as that is true."""
        until, last = time.monotonic() + seconds, None
        while time.monotonic() < until:
            try:
                last = self.run(script, frame)
            except PageError as error:
                last = str(error)
            else:
                if last:
                    return last
            time.sleep(0.05)
        raise TimeoutError(f"not true within {seconds} s: {script}; it is {last!r}; errors of the page: {self.errors}")

    def mouse(self, kind: str, x: float, y: float, pressed: bool = False) -> None:
        """Move, press or release the mouse: ``"mouseMoved"``, ``"mousePressed"``, ``"mouseReleased"``."""
        button = "left" if pressed or kind != "mouseMoved" else "none"
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(pressed), clickCount=1)

    def click(self, x: float, y: float) -> None:
        """Click at a point of the page."""
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, pressed=True)
        self.mouse("mouseReleased", x, y)

    def key(self, name: str, modifiers: int = 0) -> None:
        """Press a key by its name, e.g. ``"ArrowRight"``; 2 is the control key."""
        text = {"text": "\r"} if name == "Enter" else {}
        code = {"Enter": 13, "Tab": 9}.get(name, 0)
        self.send(
            "Input.dispatchKeyEvent", type="keyDown", key=name, modifiers=modifiers, windowsVirtualKeyCode=code, **text
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name, modifiers=modifiers, windowsVirtualKeyCode=code)

    def screenshot(self, file: Path) -> None:
        """Write what the page looks like into a PNG file."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def size(self, width: int, height: int, ratio: float = 1.0) -> None:
        """Set the size of the window."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=False
        )


@contextmanager
def chromium(folder: Path, width: int = 1280, height: int = 900, options: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser whose profile is an empty folder.

    Args:
        folder: an empty folder.
        width: the window's, in CSS pixels.
        height: the window's.
        options: Chromium's own, besides those that every test needs.
    """
    assert CHROMIUM is not None, "there is no Chromium: install Debian's package, or name one in CHROMIUM"
    profile, downloads = folder / "profile", folder / "downloads"
    downloads.mkdir(parents=True)
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *_OPTIONS, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    loop = asyncio.new_event_loop()
    try:
        port = _port(process, profile / "DevToolsActivePort")
        session, socket = loop.run_until_complete(_connect(port))
        page = Browser(loop, socket, downloads)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        page.size(width, height)
        yield page
        loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(timeout=20)
        loop.close()


def _port(process: subprocess.Popen[bytes], file: Path) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if file.exists() and len(file.read_text().split()) >= 2:
            return int(file.read_text().split()[0])
        time.sleep(0.05)
    raise RuntimeError("Chromium does not start: its messages are in chromium.log")


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
        pages = await response.json()
    address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
    return session, await session.ws_connect(address, max_msg_size=0)
