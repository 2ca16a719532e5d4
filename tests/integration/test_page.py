"""The live page in Chromium. Its numbers are compared with SQL."""

import asyncio
import errno
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import aiohttp
import pytest
from browser import tab
from landing import land_records
from warehouse_records import NOON, alert, deadletter, raw, status, version

from core.atomic_file import delete_orphaned_files
from expectations.quality_check import CheckReport, CheckResult
from expectations.quality_page import write_quality_page
from gateway.statuses import STATUSES
from smspulse.dashboard import queries
from smspulse.dashboard.errors import PageError
from smspulse.dashboard.queries import PageFilter, PageSnapshot
from smspulse.dashboard.server import PageRequestHandler, serve_page
from smspulse.dashboard.settings import PageSettings
from warehouse import catalog
from warehouse.quality import append_check_results
from warehouse.reader import query

NUMBER = "4915700000001"
PIPELINE = {
    "processes": [
        {"name": "ingest", "ok": True, "what": "port 8080; spooled 0"},
        {"name": "lander", "ok": False, "what": "does not run"},
    ],
    "lag": {"smspulse-stream": 7},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    catalog.publish_views(folder)
    return folder


def land(
    data: Path, first: int = 0, *, device_id: int = 1, delivered: int = 0, failed: int = 0, **fields: object
) -> int:
    """Land messages that ended a minute ago; return the next unused number."""
    ago = time.time() - NOON / 1000 - 60
    made = [
        version(first + n, first + n, "delivered", seconds=ago, device_id=device_id, **fields) for n in range(delivered)
    ]
    reason = {"failure_class": "no_service", "last_status_id": 10}
    made += [
        version(
            first + delivered + n,
            first + delivered + n,
            "not_sent",
            seconds=ago,
            device_id=device_id,
            **reason,
            **fields,
        )
        for n in range(failed)
    ]
    land_records(data, first, made)
    return first + len(made)


@asynccontextmanager
async def served(data: Path, **settings: object) -> AsyncIterator[str]:
    numbers, stop, address = (
        PageSnapshot(data, lambda: dict(PIPELINE)),
        asyncio.Event(),
        asyncio.get_running_loop().create_future(),
    )
    page = PageSettings.model_validate({"port": 0, "refresh_s": 0.2, **settings})
    serving = asyncio.create_task(
        serve_page(numbers, page, stop, lambda host, port: address.set_result(f"http://127.0.0.1:{port}/"))
    )
    try:
        await asyncio.wait({address, serving}, return_when=asyncio.FIRST_COMPLETED)
        yield address.result()
    finally:
        stop.set()
        await serving


async def test_the_page_shows_the_numbers_of_the_warehouse(data: Path, tmp_path: Path) -> None:
    following = land(data, delivered=90, failed=10, network_s=4.0, total_s=6.0)
    following = land(data, following, device_id=2, delivered=20, failed=60)
    land(data, following, device_id=3, delivered=9, source="beta")
    land_records(data, 0, [raw(0, status(1, 6)), raw(1, b"{")])
    land_records(data, 0, [deadletter(0, b"{", "not_json", "sms.raw:0:1")._replace()])
    texts = {"observed": "3 gaps", "expected": "none", "meaning": "", "action": "", "rows": [], "dataset": "raw"}
    found = [{"expectation": "whole", "severity": "critical", "success": False, **texts}]
    found += [{"expectation": "fresh", "severity": "warning", "success": True, **texts}]
    append_check_results(data, datetime.now(UTC), found)
    async with served(data) as url, tab(tmp_path / "profile") as browser:
        await browser.open(url)
        (row,) = query(data, "FROM delivery_now WHERE source IS NULL AND hours = 24").itertuples()
        verdict = await browser.run("document.querySelector('.verdict').innerText")
        assert verdict.startswith(f"Of {row.ended} messages that ended, {row.delivered_per_ended:.1%} were delivered")
        assert f"{row.delivered_per_ended_low:.1%} to {row.delivered_per_ended_high:.1%}" in verdict
        worst = await browser.table("Worst devices, 24 hours")
        assert [cells[:3] for cells in worst] == [
            ["2 (acme)", "80", "25.0%"],
            ["1 (acme)", "100", "90.0%"],
            ["3 (beta)", "9", "100.0%"],
        ]
        assert [cells[4] for cells in worst] == ["failing", "", ""]
        assert await browser.table("Why attempts failed, 24 hours") == [
            ["not sent: no service", "10", "70", STATUSES[10].likely_cause, STATUSES[10].what_to_do]
        ]
        assert ["network", "100", "4.0 s", "4.0 s", "4.0 s"] in await browser.table("Latency between reports, 24 hours")
        pipeline = await browser.table("The pipeline")
        assert ["✗", "lander", "does not run"] in pipeline
        assert ["", "smspulse-stream", "7 records to go"] in pipeline
        assert ["✗", "whole", "critical: 3 gaps"] in pipeline
        assert next(cells for cells in pipeline if cells[1] == "checks")[2].startswith("1 of 2 expectations hold, ")
        assert "delivered 119" in await browser.run("document.body.innerText")
        assert NUMBER not in await browser.run("document.documentElement.outerHTML")
        assert all(address.startswith(url) for address in browser.requested)  # no request to another server

        await browser.run("document.querySelector('input').value = '2'; document.querySelector('form').requestSubmit()")
        await browser.wait_for("location.search.includes('device=2') && document.readyState === 'complete'")
        assert [cells[0] for cells in await browser.table("Worst devices, 24 hours")] == ["2 (acme)"]
        assert "Of 80 messages" in await browser.run("document.querySelector('.verdict').innerText")


async def test_the_page_refreshes_automatically_and_fits_a_phone(data: Path, tmp_path: Path) -> None:
    async with served(data) as url, tab(tmp_path / "profile") as browser:
        await browser.open(url, width=390, height=844)
        assert "No outgoing message" in await browser.run("document.body.innerText")
        land(data, delivered=5)
        await browser.wait_for("document.body.innerText.includes('Of 5 messages that ended, 100.0%')")
        assert "No alert is firing." in await browser.run("document.body.innerText")
        land_records(data, 0, [alert(0, "firing", count=20, failures=12, baseline=0.03)])
        await browser.wait_for("document.body.innerText.includes('Firing alerts')")
        ((*shown, _),) = await browser.table("Firing alerts")
        assert shown == ["failure ratio", "acme", "1", "2", "12 of 20", "3.0%"]
        assert [cells[-1] for cells in await browser.table("Worst devices, 24 hours")] == ["firing"]
        assert await browser.run("document.documentElement.scrollWidth") <= 390


async def test_other_machines_need_the_password(data: Path) -> None:
    with pytest.raises(PageError, match="SMSPULSE_PAGE_PASSWORD"):
        PageRequestHandler(PageSnapshot(data, dict), PageSettings(host="0.0.0.0"))  # noqa: S104
    async with served(data, host="0.0.0.0", password="secret") as url, aiohttp.ClientSession() as session:  # noqa: S104, S106
        for login, status_code in ((None, 401), ("wrong", 401), ("secret", 200)):
            headers = {"Authorization": aiohttp.encode_basic_auth("me", login)} if login else {}
            async with session.get(f"{url}metrics", headers=headers) as answer:
                assert answer.status == status_code
                assert ("smspulse_page_read_seconds" in await answer.text()) == (status_code == 200)
            async with session.get(url, headers=headers) as answer:
                assert answer.status == status_code
                assert ("smspulse" in await answer.text()) == (status_code == 200)


async def test_without_a_password_an_unknown_host_name_is_refused(data: Path) -> None:
    async with served(data) as url, aiohttp.ClientSession() as session:
        for host, status_code in (("evil.example", 403), ("localhost:1", 200), ("[::1]:1", 200)):
            async with session.get(url, headers={"Host": host}) as answer:
                assert answer.status == status_code


async def test_without_a_warehouse_the_page_has_one_line(tmp_path: Path) -> None:
    async with served(tmp_path) as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        assert "nothing has landed yet" in await answer.text()


async def test_markup_in_a_source_is_text(data: Path) -> None:
    land(data, delivered=1, source="<b>x</b>")
    async with served(data) as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
        assert "<b>x" not in text
        assert "&lt;b&gt;x" in text


async def test_the_page_of_the_checks_sends_no_request_and_fits_a_phone(tmp_path: Path) -> None:
    about = ("acme: 1", "0", "Webhooks have no body.", "Find who <b>writes</b>.")
    rows = (
        CheckResult("raw_fresh", "raw", "info", False, *about),
        CheckResult("raw_bodies_there", "raw", "critical", False, *about, rows=("sms.raw:0:" + "9" * 300,)),
        CheckResult("messages_whole", "messages", "critical", True, *about),
    )
    page = tmp_path / "quality" / "index.html"
    write_quality_page(CheckReport(rows, "checked 3 webhooks", datetime.now(UTC)), page)
    async with tab(tmp_path / "profile") as browser:
        for width in (1100, 390):
            await browser.open(page.as_uri(), width=width, height=844)
            assert await browser.run("document.documentElement.scrollWidth <= innerWidth")
            shown = await browser.run("[...document.querySelectorAll('tr')].map(row => row.innerText)")
            marks = [re.search("(✓|✗) [a-z]+", row) for row in shown]
            assert [mark[0] for mark in marks if mark] == [
                *("✗ critical", "✗ info"),  # failed expectations, the worst first
                *("✗ info", "✗ critical", "✓ holds"),
            ]
            assert "Find who <b>writes</b>." in shown[1]
            assert await browser.run("document.querySelector('nav a').hash") == "#failed"
        assert browser.requested == [page.as_uri()] * 2


def test_the_messages_of_the_day_are_in_one_file_that_only_this_user_can_read(data: Path) -> None:
    def files() -> list[Path]:
        return list((data / ".tmp").glob(".page.parquet*"))

    land(data, delivered=3)
    (data / ".tmp" / ".page.parquet.of-a-killed-page").touch()
    with closing(PageSnapshot(data, lambda: dict(PIPELINE))) as numbers:
        for _ in range(2):
            numbers.refresh()
            (path,) = files()
            assert path.stat().st_mode & 0o077 == 0
            # A lander deletes files that nobody locks.
            assert delete_orphaned_files(path.parent) == 0
            (row,) = numbers.query_view("delivery_now", PageFilter(), "FROM asked WHERE source IS NULL AND hours = 1")
            assert row["attempted"] == 3
    assert not files()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unforeseen")])
def test_a_failed_refresh_leaves_no_file_and_the_next_one_works(
    data: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(data, delivered=3)
    with closing(PageSnapshot(data, lambda: dict(PIPELINE))) as numbers:
        numbers.refresh()
        with monkeypatch.context() as context:
            context.setattr(queries, "_hold_messages", Mock(side_effect=error))
            with pytest.raises(type(error)):
                numbers.refresh()
        assert str(error) in numbers.current_values["trouble"]
        assert len(list((data / ".tmp").glob(".page.parquet*"))) == 1
        numbers.refresh()
        assert "trouble" not in numbers.current_values
        assert len(list((data / ".tmp").glob(".page.parquet*"))) == 1
