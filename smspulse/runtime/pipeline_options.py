"""The options of `smspulse up`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """What `smspulse up` was asked for.

    Args:
        data: The data folder.
        broker: `auto`, `kafka`, `memory` or `HOST:PORT`.
        port: Ingest's.
        workers: Stream workers, each a process with a state folder and a static name of its own.
        without: Which of `page` and `alerts` to leave out.
        demo: Feed simulated traffic.
        seconds: End after so many; None goes on until a signal.
    """

    data: Path
    broker: str
    port: int
    workers: int
    without: frozenset[str]
    demo: bool
    seconds: float | None
