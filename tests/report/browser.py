"""A page in headless Chromium: what it measures, what it complains about, what it looks like.

Speaks the DevTools protocol over a pipe: JSON messages that end in a zero byte, on the descriptors 3 and 4.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60  # after which a silent browser is given up
HIGH = 10  # descriptors from here on are in nobody's way


def find_browser():
    """The path of an installed Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One running browser; each `open` shows a page in a fresh tab."""

    def __init__(self, program, profile):
        ours_in, self.commands = os.pipe()
        self.replies, ours_out = os.pipe()
        commands, replies = (fcntl.fcntl(one, fcntl.F_DUPFD, HIGH) for one in (ours_in, ours_out))
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run", "--disable-extensions"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{replies}', "bash", program, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(commands, replies),
        )
        for descriptor in (ours_in, ours_out, commands, replies):
            os.close(descriptor)
        self.number, self.buffer, self.events = 0, b"", []

    def close(self):
        """End the browser."""
        with contextlib.suppress(OSError):
            self._write("Browser.close", {}, None)
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.commands)
        os.close(self.replies)

    def open(self, path, width, height=900, dark=False):
        """A page at a width in CSS pixels, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target, width)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        page.call("Page.navigate", url=Path(path).as_uri())
        self._until(lambda: any(event["method"] == "Page.loadEventFired" for event in self.events))
        return page

    def call(self, method, session=None, **parameters):
        """A command's result."""
        number = self._write(method, parameters, session)
        reply = {}
        self._until(lambda: reply, lambda message: message.get("id") == number and reply.update(message))
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def _write(self, method, parameters, session):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        return self.number

    def _until(self, done, take=lambda message: None):
        """Read messages until it is done; events are kept."""
        deadline = time.monotonic() + SECONDS
        while not done():
            ready, _, _ = select.select([self.replies], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.replies, 1 << 16) if ready else b""
            if not chunk:
                raise TimeoutError(f"the browser said nothing more (exit status {self.process.poll()})")
            *messages, self.buffer = (self.buffer + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if "method" in message:
                    self.events.append(message)
                take(message)


class Page:
    """An open page."""

    def __init__(self, browser, session, target, width):
        self.browser, self.session, self.target, self.width = browser, session, target, width

    def call(self, method, **parameters):
        """A command to this page."""
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def complaints(self):
        """What the console, the log and the network said since the page was opened, and what it fetched."""
        self.evaluate("0")  # whatever was on its way has arrived
        found = []
        for event in self.browser.events:
            method, said = event["method"], event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(json.dumps(said)[:500])
            elif method == "Network.requestWillBeSent" and not said["request"]["url"].startswith("file:"):
                found.append(f"asked for {said['request']['url']}")
        return found

    def screenshot(self, path):
        """The whole page as a PNG file."""
        height = self.evaluate("Math.ceil(document.documentElement.scrollHeight)")
        clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        """Close its tab."""
        self.browser.call("Target.closeTarget", targetId=self.target)
