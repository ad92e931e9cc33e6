"""A headless Chromium, driven over its debugging pipe: no driver, no package, no port.

Messages are JSON objects ended by a NUL; Chromium reads them from its file descriptor 3 and writes to 4 (Chrome
DevTools Protocol, `--remote-debugging-pipe`). HEADWAY_CHROMIUM names it where it is not on the path.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("HEADWAY_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --no-default-browser-check "
    "--disable-background-networking --disable-component-update --disable-sync --disable-extensions "
    "--metrics-recording-only --password-store=basic --use-mock-keychain --remote-debugging-pipe about:blank"
)
_LINE_BYTES = 1 << 26


class Browser:
    """One browser with one page. Everything it logs, every request and every fault is kept."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._numbers = 0
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.faults: list[str] = []

    async def __aenter__(self) -> Browser:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        ours = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, from_write)]  # never 3 or 4 themselves

        def place() -> None:
            os.dup2(ours[0], 3)
            os.dup2(ours[1], 4)

        self._process = subprocess.Popen(
            [str(CHROMIUM), *_FLAGS.split(), f"--user-data-dir={self._profile}"],
            preexec_fn=place,  # noqa: PLW1509 - no other way gives a child these two descriptors
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_read, from_write, *ours):
            os.close(end)
        self._commands = os.fdopen(to_write, "wb", buffering=0)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        self._pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_read, "rb", buffering=0)
        )
        self._listening = asyncio.create_task(self._listen(reader))
        self._session = ""
        made = await self.tell("Target.createTarget", url="about:blank")
        self._session = (await self.tell("Target.attachToTarget", targetId=made["targetId"], flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            await self.tell(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._session = ""
        with suppress(TimeoutError, BrokenPipeError):
            await self.tell("Browser.close")
        self._commands.close()
        try:
            await asyncio.to_thread(self._process.wait, 20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._listening.cancel()
        self._pipe.close()
        await asyncio.sleep(0)

    async def tell(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command and its result."""
        self._numbers += 1
        message: dict[str, object] = {"id": self._numbers, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        answer = self._asked[self._numbers] = asyncio.get_running_loop().create_future()
        self._commands.write(json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(120):
            return dict(await answer)

    async def value(self, script: str) -> Any:
        """What an expression comes to on the page; promises are awaited."""
        told = await self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, script: str, seconds: float = 120.0) -> Any:
        """Its value once it is true."""
        async with asyncio.timeout(seconds):
            while not (found := await self.value(script)):
                await asyncio.sleep(0.1)
        return found

    async def press(self, key: str, *, code: int, text: str = "") -> None:
        """A key goes down and up."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.tell("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        await self.tell("Input.dispatchKeyEvent", type="keyUp", **named)

    async def picture(self, **options: object) -> bytes:
        """A PNG of the page."""
        return base64.b64decode((await self.tell("Page.captureScreenshot", **options))["data"])

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                message = json.loads((await reader.readuntil(b"\0"))[:-1])
                if "id" in message:
                    answer = self._asked.pop(message["id"])
                    if "error" in message:
                        answer.set_exception(RuntimeError(message["error"]["message"]))
                    else:
                        answer.set_result(message["result"])
                else:
                    self._heard(message["method"], message.get("params", {}))

    def _heard(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.faults.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.faults.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.faults.append(told["entry"]["text"])
