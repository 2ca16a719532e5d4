"""Python loads this in every process of a chaos run, as PYTHONPATH names its folder. It changes stream workers only.

Points
    A file `{SMSPULSE_CHAOS}/{worker}-{point}` that holds a signal's number makes the worker send itself this signal
    when a transaction with records next reaches the point: `begin` (nothing produced yet), `commit` (outputs and offset
    are sent, not committed), `committed` (the local state lacks the batch). So a fault is certain to occur in the
    middle of a transaction.
Mutations, by SMSPULSE_CHAOS_MUTATION
    `no-fence`: each producer has its own transactional id, so no owner fences another one.
    `offsets-outside`: offsets are committed in their own transaction, before the outputs.
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
    import streams.recovery  # noqa: PLC0415 - in stream workers only

    product = streams.recovery.Producer

    def reach(point: str) -> None:
        trigger = folder / f"{worker}-{point}"
        try:
            number = int(trigger.read_text())
            trigger.unlink()
        except FileNotFoundError:  # not armed, or used by the transaction of another partition
            return
        signal.pthread_kill(threading.get_ident(), number)  # this thread runs no further instruction

    class Pointed(product):  # type: ignore[misc, valid-type]
        # The first transaction of a producer is aborted. It ends those of earlier owners, and has no records.
        is_owner = False

        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            # A mutation is visible in each report of a message, but not in each record of device activity.
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
            # A group with members accepts offsets only from them or from a transaction, so this is a second one.
            self.offsets_producer = product(config | {"transactional.id": f"{config['transactional.id']}-offsets"})

        def init_transactions(self, *arguments: Any) -> None:
            super().init_transactions(*arguments)
            self.offsets_producer.init_transactions(*arguments)

        def send_offsets_to_transaction(self, *arguments: Any) -> None:
            self.offsets_producer.begin_transaction()
            self.offsets_producer.send_offsets_to_transaction(*arguments)
            self.offsets_producer.commit_transaction()

    changed = {"none": Pointed, "no-fence": NoFence, "offsets-outside": OffsetsOutside}[mutation]
    streams.recovery.Producer = changed
    print(f"INFO hooked, mutation {mutation}", file=sys.stderr, flush=True)  # the run requires this line


if sys.orig_argv[1:4] == COMMAND:
    change(
        Path(os.environ["SMSPULSE_CHAOS"]),
        os.environ["SMSPULSE_CHAOS_MUTATION"],
        sys.orig_argv[sys.orig_argv.index("--worker") + 1],
    )
