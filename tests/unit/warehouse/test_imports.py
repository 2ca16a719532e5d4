"""Reading loads no more than it needs."""

import subprocess
import sys
from pathlib import Path

from warehouse import catalog

READ = """
import sys
from pathlib import Path
from warehouse.catalog import publish_views
from warehouse.reader import fetch_rows, open_warehouse
from warehouse.status_codes import load_known_statuses

data = Path(sys.argv[1])
publish_views(data)
load_known_statuses(data)
with open_warehouse(data) as connection:
    fetch_rows(connection, "FROM freshness")
print("pyarrow" in sys.modules)
"""


def test_reading_and_publishing_again_do_not_import_pyarrow(tmp_path: Path) -> None:
    catalog.publish_views(tmp_path)
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
