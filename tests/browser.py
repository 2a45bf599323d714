"""Debian's Chromium without a window, for tests that look at a page as a reader sees it.

It is driven by the DevTools protocol over two pipes (``--remote-debugging-pipe``): messages are
JSON, each ended by a NUL byte.  So no port is opened, and no driver of another version is needed.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LIMIT_S = 60.0
_FLAGS = (
    # Only pages that a test has written are shown.  Its own sandbox refuses to run as root.
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    # It must not look for updates, variations or a proxy: a test has no network.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--no-first-run", "--no-default-browser-check", "--no-proxy-server"),
    *("--disable-extensions", "--disable-default-apps", "--metrics-recording-only"),
    *("--disable-features=OptimizationHints,MediaRouter,Translate", "--hide-scrollbars"),
    *("--force-color-profile=srgb", "--font-render-hinting=none", "--remote-debugging-pipe"),
)


class BrowserError(Exception):
    """The browser refused a command, ended, or gave no answer in time."""


@dataclass
class Tab:
    """One page: what it asked for and what it logged, and functions to look at it."""

    browser: Browser
    session: str
    requests: list[str] = field(default_factory=list)  # URLs
    messages: list[str] = field(default_factory=list)  # of the console and of the browser's log

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command for this page, and return its result."""
        return self.browser.call(method, parameters, session=self.session)

    def show(self, path: Path, *, scripts: bool = False) -> None:
        """Load a file of this machine, on a light screen of 1280 pixels."""
        self.look()
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.requests.clear()
        self.messages.clear()
        self.browser.loaded.discard(self.session)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.browser.wait(lambda: self.session in self.browser.loaded)

    def look(
        self, *, width: int = 1280, height: int = 900, dark: bool = False, paper: bool = False
    ) -> None:
        """Show the present page as a reader with that screen or paper sees it."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        media = "print" if paper else "screen"
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def ask(self, expression: str) -> object:
        """Return the value of a JavaScript expression; it runs with the page's scripts off too."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"], indent=1))
        return answer["result"].get("value")

    def accessibility(self) -> list[dict[str, Any]]:
        """Return what a screen reader is told: roles and names, in the page's order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [one for one in nodes if not one.get("ignored")]

    def picture(self, path: Path, *, height: int | None = None) -> None:
        """Write the page to a PNG file: the whole of it, or so many pixels from its top."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        tall = height or size["height"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": tall, "scale": 1}
        shot = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        path.write_bytes(base64.b64decode(shot["data"]))


class Browser:
    """A running Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process = process
        self._write, self._read = write, read
        self._numbers = itertools.count(1)
        self._rest = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._tabs: dict[str, Tab] = {}
        self.loaded: set[str] = set()

    def call(
        self, method: str, parameters: Mapping[str, object], *, session: str = ""
    ) -> dict[str, Any]:
        """Send a command, and return its result; raises BrowserError if it is refused."""
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        raw = json.dumps(message).encode() + b"\0"
        while raw:
            raw = raw[os.write(self._write, raw) :]
        self.wait(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def wait(self, condition: Callable[[], bool]) -> None:
        """Take messages until a condition holds."""
        deadline = time.monotonic() + _LIMIT_S
        while not condition():
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            raw = os.read(self._read, 1 << 20) if ready else b""
            if not raw:
                why = f"it ended: {self._process.poll()}" if ready else f"none in {_LIMIT_S:g} s"
                raise BrowserError(f"no answer of the browser, {why}")
            *whole, self._rest = (self._rest + raw).split(b"\0")
            for one in whole:
                self._take(json.loads(one))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        session = message.get("sessionId", "")
        given, tab = message["params"], self._tabs.get(session)
        match message["method"]:
            case "Page.loadEventFired":
                self.loaded.add(session)
            case "Network.requestWillBeSent" if tab:
                tab.requests.append(given["request"]["url"])
            case "Runtime.consoleAPICalled" if tab:
                tab.messages.append(json.dumps(given["args"]))
            case "Runtime.exceptionThrown" if tab:
                tab.messages.append(json.dumps(given["exceptionDetails"]))
            case "Log.entryAdded" if tab:
                tab.messages.append(given["entry"]["text"])

    def tab(self) -> Tab:
        """Open an empty page."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        tab = Tab(self, attached["sessionId"])
        self._tabs[tab.session] = tab
        for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
            tab.call(f"{domain}.enable")
        return tab


@contextlib.contextmanager
def chromium(home: Path) -> Iterator[Browser]:
    """Start a browser whose profile and cache lie in ``home``, and end it with the block."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is not on this machine: run ./inv, which installs it"
    there, write = os.pipe()
    read, back = os.pipe()

    def as_3_and_4() -> None:
        # Numbers that are high enough, so that neither copy hits the other.
        one, two = os.dup(there), os.dup(back)
        os.dup2(one, 3)
        os.dup2(two, 4)

    with (home / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={home / 'profile'}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            close_fds=False,
            preexec_fn=as_3_and_4,
            start_new_session=True,
        )
    os.close(there)
    os.close(back)
    browser = Browser(process, write, read)
    try:
        yield browser
    finally:
        with contextlib.suppress(BrowserError, OSError):
            browser.call("Browser.close", {})
        os.close(write)
        os.close(read)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
