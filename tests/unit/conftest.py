"""Rooms that read the warehouse test on data made by the warehouse's own builders."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "warehouse"))
