"""Writes `docs/live-page.png`: `python tests/support/screenshot.py`. With a folder, writes every view of the page."""

import asyncio
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from browser import Tab, tab
from days import Days
from rendered import land_alerts

from expectations.runner import run_checks
from expectations.settings import CheckSettings
from smspulse.dashboard.queries import PageSnapshot
from smspulse.dashboard.server import serve_page
from smspulse.dashboard.settings import PageSettings
from smspulse.simulator.options import GatewayBehaviour
from warehouse.quality import append_check_results

_PIPELINE = {
    "processes": [
        {"name": "broker", "ok": True, "what": "at 127.0.0.1:19092"},
        {"name": "ingest", "ok": True, "what": "port 8080; kafka up, spooled 0"},
        {"name": "lander", "ok": True, "what": "process 4711, /metrics at 127.0.0.1:9101"},
        {"name": "stream", "ok": True, "what": "process 4712, /metrics at 127.0.0.1:9102"},
    ],
    "lag": {"smspulse-lander": 12, "smspulse-stream": 7},
}
_LOOKS = {"desktop": (1000, "light"), "dark": (1000, "dark"), "phone": (390, "light"), "phone-dark": (390, "dark")}


def simulate_days(data: Path) -> None:
    """Simulate two days up to now. Today, phone 8003 fails."""
    now = datetime.now(UTC)
    days = Days(data, seed=10, messages=6000)
    well = GatewayBehaviour(failing=0.04, devices=14, unhealthy=())
    days.simulate_day(now.date() - timedelta(days=1), behaviour=well)
    ill = GatewayBehaviour(failing=0.04, devices=14, unhealthy=((8003, 0.5),))
    days.simulate_day(now.date(), behaviour=ill, skip=(now.hour + now.minute / 60, 24))
    land_alerts(data)
    append_check_results(
        data, now, [asdict(row) for row in run_checks(data, CheckSettings(), now, suites=("raw", "messages")).rows]
    )


async def shoot(page: Tab, url: str, path: Path, width: int, theme: str, height: int = 1230) -> None:
    await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    await page.open(url, width=width, height=height)
    await page.screenshot(path)


async def main(folder: Path | None) -> None:
    with TemporaryDirectory() as temporary:
        data, empty = Path(temporary) / "data", Path(temporary) / "empty"
        data.mkdir()
        empty.mkdir()
        simulate_days(data)
        for source in (data, empty) if folder else (data,):
            stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(
                serve_page(
                    PageSnapshot(source, lambda: dict(_PIPELINE)),
                    PageSettings(port=0, refresh_s=60),
                    stop,
                    lambda _, port, url=url: url.set_result(f"http://127.0.0.1:{port}/"),
                )
            )
            address = await url
            async with tab(Path(temporary) / f"profile-{source.name}") as page:
                if folder is None:
                    await shoot(page, address, ROOT / "docs" / "live-page.png", *_LOOKS["desktop"])
                for name, (width, theme) in _LOOKS.items() if folder else ():
                    await shoot(page, address, folder / f"{source.name}-{name}.png", width, theme, height=2400)
            stop.set()
            await serving


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else None))
