"""A headless Chromium on the DevTools protocol, over pipes: no driver, no port, no download."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
MISSING = (
    "no Chromium found: install one (Debian: apt-get install chromium), run `make browser`, or name it in "
    "DITPRESS_BROWSER"
)


def browser_path() -> str | None:
    """The browser to use: DITPRESS_BROWSER, what ``make browser`` installed, or one on the PATH."""
    here = Path(__file__).parents[1] / ".venv" / "browser" / "chromium"
    named = [os.environ.get("DITPRESS_BROWSER"), str(here) if here.is_file() else None]
    return next((path for path in (*named, *map(shutil.which, NAMES)) if path), None)


class Page:
    """One open page; ``events`` holds everything the browser reported so far."""

    def __init__(self, write: int, read: int) -> None:
        self.requests = os.fdopen(write, "wb", buffering=0)
        self.replies = os.fdopen(read, "rb", buffering=0)
        self.pending = b""
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        self.count = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        self.requests.write(json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == self.count:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def wait_for(self, method: str) -> None:
        """Return when an event has been reported."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression evaluates to."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def show(self, file: Path, width: int, height: int = 900) -> None:
        """Load a file in a window of that width."""
        self.events.clear()
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, exceptions, and log entries."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def addresses(self) -> list[str]:
        """Everything the page asked for."""
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.pending:
            block = self.replies.read(1 << 16)
            assert block, "the browser is gone"
            self.pending += block
        message, self.pending = self.pending.split(b"\0", 1)
        return json.loads(message)


@contextlib.contextmanager
def open_page(path: str) -> Iterator[Page]:
    """A blank page in a fresh profile."""
    command_read, command_write = os.pipe()
    reply_read, reply_write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # The browser reads commands from descriptor 3 and writes replies to 4.
        script = f'exec "$@" 3<&{command_read} 4>&{reply_write}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", path, *options],
            pass_fds=(command_read, reply_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(reply_write)
        page = Page(command_write, reply_read)
        try:
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
        finally:
            process.kill()
            process.wait()
            page.requests.close()
            page.replies.close()
