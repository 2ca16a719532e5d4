"""The options of `smspulse up`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """The options of one run of `smspulse up`.

    Args:
        data: The data folder.
        broker: `auto`, `kafka`, `memory` or `HOST:PORT`.
        port: Port of ingest; 0 for any free one.
        workers: Number of stream workers. Each is a process with its own state folder and static name.
        without: Processes to leave out, of `page` and `alerts`.
        demo: Whether to simulate traffic.
        seconds: Seconds until the end; None for no end but a signal.
    """

    data: Path
    broker: str
    port: int
    workers: int
    without: frozenset[str]
    demo: bool
    seconds: float | None
