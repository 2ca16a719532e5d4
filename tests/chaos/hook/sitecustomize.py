"""Python loads this in every process of a chaos run, for PYTHONPATH names its folder; it changes stream workers alone.

Points
    A file `{SMSPULSE_CHAOS}/{worker}-{point}` that holds a signal's number makes the worker send itself this signal
    when a transaction with records next reaches the point: `begin` (nothing produced yet), `commit` (outputs and offset
    are sent, not committed), `committed` (the local state lacks the run). So a fault can be in the middle of a
    transaction for certain, not by luck.
Mutations, by SMSPULSE_CHAOS_MUTATION
    `no-fence`: each producer has a transactional id of its own, so nobody fences anybody.
    `offsets-outside`: offsets are committed by themselves, before the outputs.
"""

import os
import signal
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

COMMAND = ["-m", "smspulse", "stream"]


def change(folder: Path, mutation: str, worker: str) -> None:
    import streams.recovery  # noqa: PLC0415 - in stream workers alone

    product = streams.recovery.Producer

    def reach(point: str) -> None:
        trigger = folder / f"{worker}-{point}"
        try:
            number = int(trigger.read_text())
            trigger.unlink()
        except FileNotFoundError:  # not armed, or another partition's transaction has taken it
            return
        signal.pthread_kill(threading.get_ident(), number)  # this thread does not take another step

    class Pointed(product):  # type: ignore[misc, valid-type]
        # The first transaction of a producer is aborted: it ends what earlier owners left open, and has no records.
        is_owner = False

        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            # A mutation shows by each report of a message, but not by each record of what a device did.
            self.has_points = mutation == "none" or "-messages-" in config["transactional.id"]

        def reach(self, point: str) -> None:
            if self.has_points and self.is_owner:
                reach(point)

        def begin_transaction(self) -> None:
            self.reach("begin")
            super().begin_transaction()

        def abort_transaction(self, *arguments: Any) -> None:
            super().abort_transaction(*arguments)
            self.is_owner = True

        def commit_transaction(self, *arguments: Any) -> None:
            self.reach("commit")
            super().commit_transaction(*arguments)
            self.reach("committed")

    class NoFence(Pointed):
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config | {"transactional.id": f"{config['transactional.id']}-{uuid.uuid4()}"})

    class OffsetsOutside(Pointed):
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            # A group with members takes offsets from them alone, or from a transaction: so it is one of its own.
            self.beside = product(config | {"transactional.id": f"{config['transactional.id']}-offsets"})

        def init_transactions(self, *arguments: Any) -> None:
            super().init_transactions(*arguments)
            self.beside.init_transactions(*arguments)

        def send_offsets_to_transaction(self, *arguments: Any) -> None:
            self.beside.begin_transaction()
            self.beside.send_offsets_to_transaction(*arguments)
            self.beside.commit_transaction()

    changed = {"none": Pointed, "no-fence": NoFence, "offsets-outside": OffsetsOutside}[mutation]
    streams.recovery.Producer = changed
    print(f"INFO hooked, mutation {mutation}", file=sys.stderr, flush=True)  # the run insists on this line


if sys.orig_argv[1:4] == COMMAND:
    change(
        Path(os.environ["SMSPULSE_CHAOS"]),
        os.environ["SMSPULSE_CHAOS_MUTATION"],
        sys.orig_argv[sys.orig_argv.index("--worker") + 1],
    )
