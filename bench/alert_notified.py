"""From the first failed webhook of a phone to the notification of a real Alertmanager, through the whole pipeline.

    python bench/alert_notified.py [--quick]

Two hundred phones report over HTTP and learn what is usual; then all of one phone's messages fail. Needs Debian's
`prometheus-alertmanager`; ends with 2 without it, and with 1 if another alert is notified or none is.
"""

# ruff: noqa: S311 - traffic, not secrets

import argparse
import asyncio
import json
import random
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from latency import ingest
from measure import OUR_KAFKA, figure, kafka_node, our, running
from peers.environments import HERE

sys.path.append(str(HERE.parents[1] / "tests" / "support"))

from alertmanager import alertmanager, configured

from smspulse.processes.children import find_free_port

PROGRAM = shutil.which("prometheus-alertmanager")
DEVICES = 200
FAILING = 8_100
RATE = 200.0  # messages a second, of all phones
USUAL = 0.03
LIMIT_S = 120
AT_ONCE = 64


class Phones:
    """Phones that send one report, the outcome, for each message."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url, self._sms_id, self._chance = session, url, 0, random.Random(8)
        self.failing_since = 0.0
        self.failed = 0

    async def report(self, *, failing: bool) -> None:
        """Report the outcome of one message of any phone. The failing phone always reports the same failure."""
        self._sms_id += 1
        device = 8_001 + self._chance.randrange(DEVICES)
        failed = self._chance.random() < USUAL
        if failing and device == FAILING:
            failed = True
            self.failing_since = self.failing_since or time.perf_counter()
            self.failed += 1
        body = {"sms_id": self._sms_id, "status_id": 10 if failed else 7, "device_id": device, "channel_id": 1}
        async with self._session.post(self._url, json=body | {"sendto": "+4915700000001"}) as answer:
            if answer.status // 100 != 2:
                msg = f"a webhook was answered {answer.status}"
                raise RuntimeError(msg)

    async def learn(self, messages: int) -> None:
        """Report a number of messages as fast as possible."""
        left = iter(range(messages))

        async def some() -> None:
            for _ in left:
                await self.report(failing=False)

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    async def live(self, seconds: float, *, failing: bool) -> None:
        """Report at the usual rate for some seconds."""
        started, count = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while (now := time.perf_counter()) < started + seconds:
                while count < (now - started) * RATE:
                    group.create_task(self.report(failing=failing))
                    count += 1
                await asyncio.sleep(1 / RATE)


def show_logs(folder: Path) -> None:
    """Print the last line of each process."""
    for log in sorted(folder.glob("*.log")):
        print(f"{log.name}:", *log.read_text(errors="replace").splitlines()[-5:], sep="\n  ", flush=True)


async def next_one(notifications: asyncio.Queue[tuple[float, Any]], failing: asyncio.Task[None]) -> tuple[float, Any]:
    """Return the next notification.

    Raises:
        RuntimeError: A webhook was refused.
        TimeoutError: None came.
    """
    coming = asyncio.create_task(notifications.get())
    await asyncio.wait({coming, failing}, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
    if failing.done():
        failing.result()
    return await asyncio.wait_for(coming, 0)


async def notified(folder: Path, kafka: Any, messages: int) -> int:
    """Run the benchmark and print the figures; return the exit code."""
    notifications: asyncio.Queue[tuple[float, Any]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        await notifications.put((time.perf_counter(), await request.json()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    port = find_free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    with ExitStack() as stack:
        url = stack.enter_context(ingest(kafka, folder))
        config = configured(folder, f"http://127.0.0.1:{port}/", "0s", "1s")
        manager = stack.enter_context(alertmanager(PROGRAM or "", config))
        common = ("--data", str(folder), "--broker", kafka.bootstrap)
        stack.enter_context(running(our("stream", *common), {}, folder / "stream.log"))
        sending = our("alerts", "send", *common)
        stack.enter_context(running(sending, {"SMSPULSE_ALERTS_ALERTMANAGER": manager}, folder / "alerts.log"))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            phones = Phones(session, url)
            await phones.learn(messages)
            await phones.live(20, failing=False)  # the stream works off its lag
            failing = asyncio.create_task(phones.live(LIMIT_S, failing=True))
            seen: list[Any] = []
            took = failed = 0.0
            try:
                while not took:
                    at, body = await next_one(notifications, failing)
                    seen += body["alerts"]
                    if any(alert["labels"].get("device") == str(FAILING) for alert in body["alerts"]):
                        took, failed = at - phones.failing_since, phones.failed
                await asyncio.sleep(10)  # time for further notifications
                while not notifications.empty():
                    seen += notifications.get_nowait()[1]["alerts"]
            except TimeoutError:
                print("no notification came", flush=True)
                show_logs(folder)
            failing.cancel()
            await asyncio.gather(failing, return_exceptions=True)
    await runner.cleanup()
    others = [alert["labels"] for alert in seen if alert["labels"].get("device") != str(FAILING)]
    for labels in others:
        print(f"another alert: {json.dumps(labels)}", flush=True)
    if seen:
        print(json.dumps(seen[0]["annotations"], indent=1), flush=True)
    figure("alert_seconds_from_first_failed_webhook_to_notification", took)
    figure("alert_failed_webhooks_until_notification", failed)
    figure("alerts_of_others", len(others), "<= 0")
    return 0 if took and not others else 1


def main() -> None:
    """Run the benchmark, with `--quick` on less history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,000 messages to learn from, in place of 60,000")
    quick: bool = parser.parse_args().quick
    if PROGRAM is None:
        print("NOT MEASURED: prometheus-alertmanager is not on PATH: apt-get install prometheus-alertmanager")
        sys.exit(2)
    with kafka_node(OUR_KAFKA) as (kafka, folder):
        sys.exit(asyncio.run(notified(folder, kafka, 5_000 if quick else 60_000)))


if __name__ == "__main__":
    main()
