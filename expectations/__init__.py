"""Data-quality checks of the warehouse with Great Expectations."""

from typing import Final

# In the order of the data flow. Here, because the command line names them without an import of the checks.
SUITE_NAMES: Final = ("raw", "messages", "deadletters", "delivery", "reconciliation")
