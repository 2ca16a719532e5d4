"""A headless Chromium, driven over its DevTools protocol, for tests of the page as it is shown."""

import asyncio
import base64
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from running import program

_WITHIN_S = 120


class Tab:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.requested: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=_WITHIN_S)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    async def open(self, url: str, *, width: int = 1100, height: int = 1500) -> None:
        """Open a page in a window of the given size."""
        phone = width < 600
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        await self.call("Network.enable")
        await self.call("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete'")

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    async def wait_for(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        async with asyncio.timeout(_WITHIN_S):
            while not await self.run(script):  # noqa: ASYNC110 - the protocol has no event for a changed text
                await asyncio.sleep(0.05)

    async def table(self, title: str) -> list[list[str]]:
        """Return the visible cells of the table under a heading."""
        script = f"""
            [...document.querySelectorAll("section")].filter(s => s.querySelector("h2").innerText === {title!r})
                .flatMap(s => [...s.querySelectorAll("tbody tr")].map(r => [...r.cells].map(c => c.innerText)))
        """
        return list(await self.run(script))

    async def screenshot(self, path: Path) -> None:
        """Save a picture of the window."""
        shot = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))


@asynccontextmanager
async def tab(folder: Path) -> AsyncIterator[Tab]:
    """Run Chromium with its profile in a folder; yield its tab."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    arguments = [*options, f"--user-data-dir={folder}", "about:blank"]
    pipes = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(program("chromium"), *arguments, **pipes)
    assert process.stderr is not None
    try:
        line = b""
        async with asyncio.timeout(_WITHIN_S):
            while not (found := re.search(rb"DevTools listening on ws://([^/]+)/", line)):
                line = await process.stderr.readline()
                assert line, "Chromium ended"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{found[1].decode()}/json/list") as answer:
                (first,) = [each for each in await answer.json() if each["type"] == "page"]
            async with session.ws_connect(first["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        process.terminate()
        await process.communicate()
