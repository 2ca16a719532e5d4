"""Files of every released schema stay readable: by the views, by compaction and by a rebuild."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from released import FOLDER, answers

from gateway.statuses import build_status_table
from warehouse import catalog
from warehouse.maintenance.compaction import compact_files
from warehouse.rebuild import rebuild_base

RELEASES = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("release", RELEASES)
def test_what_a_release_landed_is_read_as_it_was_then(tmp_path: Path, release: str) -> None:
    data = tmp_path / release
    shutil.copytree(FOLDER / release, data)
    catalog.publish_views(data)
    expected = json.loads((data / "answers.json").read_text())
    columns = {view: answer["columns"] for view, answer in expected.items()}
    assert answers(data, columns) == expected
    assert compact_files(data, datetime.now(UTC) + timedelta(days=2)).files_after == 2
    assert answers(data, columns) == expected
    assert rebuild_base(data, build_status_table({}), timedelta(days=1)).messages == 3
    assert [row[:3] for row in answers(data, columns)["messages"]["rows"]] == [
        ["acme", number, f"acme:{number}"] for number in (1, 2, 3)
    ]
