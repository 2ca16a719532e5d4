"""Injects faults into a running pipeline, and measures the time until webhooks of every partition land again."""

import asyncio
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq
from aiokafka.partitioner import DefaultPartitioner
from running import Pipeline

from core.records import message_key

SESSION_S = 6  # the minimum of Kafka; below the product's default, so that more faults fit into a minute
PARTITIONS = 4
PROBE = "probe"
_PATIENCE_S = 30.0
_POINT_S = 60.0
"""Time for a process to reach a point of a transaction. Every partition has traffic, so only the speed matters."""
_RECOVERY_S = 300.0

WEIGHTS = {
    "stream:kill": 16,
    "stream:kill-begin": 4,
    "stream:kill-commit": 8,
    "stream:kill-committed": 6,
    "stream:delete": 13,
    "stream:stop": 5,
    "stream:stop-begin": 5,
    "stream:stop-commit": 6,
    "lander:kill": 13,
    "lander:stop": 3,
    "ingest:kill": 11,
    "broker:kill": 5,
    "broker:restart": 5,
}
"""Every fault, `process:kind`, and its weight. A fault of the broker takes half a minute, most others a few seconds.

`kill` is SIGKILL; `stop` is SIGSTOP until the session expires and others own the partitions, then SIGCONT; `-begin`,
`-commit` and `-committed` name a point of a transaction (see `hook/sitecustomize.py`); `delete` kills and deletes
the local state; `restart` is SIGTERM.
"""

_NOT_TAKEN = " (nobody took over)"
_COMMANDS = {"lander": "land", "ingest": "ingest", "broker": "broker", "stream": "stream"}


class NotRecoveredError(Exception):
    """Webhooks sent after a fault did not land."""


class NotInflictedError(Exception):
    """A requested fault did not occur, so the run would prove nothing."""


async def until(seen: Callable[[], bool], within: float) -> bool:
    deadline = time.monotonic() + within
    while not seen():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)  # no event is available across processes
    return True


def state_of(pid: int) -> str:
    """Return the kernel's state of a process: T is stopped, Z has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def ids_by_partition() -> list[Iterator[int]]:
    """Return, for each partition, an endless iterator of sms_ids of probes that ingest writes there."""
    choose, numbers = DefaultPartitioner(), list(range(PARTITIONS))

    def of(partition: int) -> Iterator[int]:
        sms_id = 0
        while True:
            if choose(message_key(PROBE, sms_id), numbers, numbers) == partition:
                yield sms_id
            sms_id += 1

    return [of(partition) for partition in numbers]


@dataclass
class Faults:
    """Injects faults into a pipeline.

    Args:
        pipeline: Started with `workers` stream workers and the hook.
        workers: Number of stream workers.
        triggers: The folder that arms the hook's points.
        rng: Chooses the process.
        insist: Raise if a point is not reached or no other process takes over the partitions. A random fault may hit
            an unavailable broker, and is then counted as the fault that it became.
    """

    pipeline: Pipeline
    workers: int
    triggers: Path
    rng: random.Random
    insist: bool = False
    _seen: set[str] = field(default_factory=set)
    _landed: set[int] = field(default_factory=set)
    _ids: list[Iterator[int]] = field(default_factory=ids_by_partition)
    _url: str = ""

    async def warm_up(self) -> None:
        """Wait until every worker has partitions and webhooks of each partition land.

        Raises:
            NotRecoveredError: It took too long.
        """
        names = {self._name(worker) for worker in range(self.workers)}
        if not await until(lambda: names <= set(self.owners().values()), _RECOVERY_S):
            msg = f"not all of {sorted(names)} had partitions after {_RECOVERY_S:g} s"
            raise NotRecoveredError(msg)
        await self.recovery()

    async def inflict(self, fault: str) -> str:
        """Inject a fault and wait until it is over; return the actual fault, without a point that was not reached.

        Raises:
            NotInflictedError: Another fault occurred, and `insist` is set.
        """
        inflicted = await self._inflict(fault)
        expected = {fault} if self.workers > 1 else {fault, f"{fault}{_NOT_TAKEN}"}
        if self.insist and inflicted not in expected:
            msg = f"{fault} was requested, and {inflicted} occurred"
            raise NotInflictedError(msg)
        return inflicted

    async def _inflict(self, fault: str) -> str:
        process, _, kind = fault.partition(":")
        worker = self.rng.randrange(self.workers) if process == "stream" else None
        pid = await self._running(process, worker)
        action, _, point = kind.partition("-")
        match action:
            case "kill" | "delete":
                if not point or not await self._reached(worker, pid, point, signal.SIGKILL, "Z"):
                    os.kill(pid, signal.SIGKILL)
                    point = ""
                await until(lambda: state_of(pid) == "Z", _PATIENCE_S)
                if action == "delete":
                    state = self.pipeline.data / "state" / str(worker)
                    if state.exists():  # a worker that never had a partition has none
                        shutil.rmtree(state)
            case "restart":
                os.kill(pid, signal.SIGTERM)
                await until(lambda: state_of(pid) == "Z", _PATIENCE_S)
            case "stop":
                return await (self._stop_lander(pid) if worker is None else self._stop_worker(worker, pid, point))
        return f"{process}:{action}{point and '-' + point}"

    async def _running(self, process: str, worker: int | None) -> int:
        """Wait for a process that may be restarting; return its id."""
        found: int | None = None

        def seen() -> bool:
            nonlocal found
            found = self.pipeline.find(_COMMANDS[process], worker)
            return found is not None

        if not await until(seen, _PATIENCE_S) or found is None:
            msg = f"{process} does not restart"
            raise NotRecoveredError(msg)
        return found

    async def _reached(self, worker: int | None, pid: int, point: str, number: int, state: str) -> bool:
        """Arm a point; return whether the process reached it. Otherwise, the trigger is removed."""
        trigger = self.triggers / f"{worker}-{point}"
        scratch = trigger.with_suffix(".part")
        scratch.write_text(str(int(number)))
        scratch.rename(trigger)
        reached = await until(lambda: state_of(pid) == state, _POINT_S)
        trigger.unlink(missing_ok=True)
        return reached or state_of(pid) == state

    async def _stop_worker(self, worker: int, pid: int, point: str) -> str:
        name = self._name(worker)
        if not point or not await self._reached(worker, pid, point, signal.SIGSTOP, "T"):
            os.kill(pid, signal.SIGSTOP)
            point = ""
        try:
            held = {partition for partition, owner in self.owners().items() if owner == name}
            taken = False
            if self.workers > 1 and held:
                taken = await until(
                    lambda: name not in {self.owners()[partition] for partition in held}, SESSION_S + _PATIENCE_S
                )
            else:
                await asyncio.sleep(SESSION_S + 2)
            await asyncio.sleep(self.rng.uniform(0, 2))
        finally:
            os.kill(pid, signal.SIGCONT)
        return f"stream:stop{point and '-' + point}{'' if taken else _NOT_TAKEN}"

    def _name(self, worker: int) -> str:
        return "stream" if self.workers == 1 else f"stream-{worker}"

    def owners(self) -> dict[str, str]:
        """Return the last owner of each partition, from the log of the workers."""
        log = self.pipeline.log.read_text(errors="replace")
        taken = re.findall(r"^ *(stream\S*) │ owns (.+) from offset", log, re.MULTILINE)
        return {partition: name for name, partition in taken}

    async def _stop_lander(self, pid: int) -> str:
        """Stop the lander while another lander runs, which takes over its partitions."""
        async with self._second_lander() as count_assignments:
            before = count_assignments()
            os.kill(pid, signal.SIGSTOP)
            try:
                taken = await until(lambda: count_assignments() > before, SESSION_S + _PATIENCE_S)
                await self.recovery()  # the second lander has landed webhooks
            finally:
                os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(2)
        return f"lander:stop{'' if taken else _NOT_TAKEN}"

    @asynccontextmanager
    async def _second_lander(self) -> Any:
        """Run a second lander; yield a function that counts its assignments of partitions."""
        log = self.pipeline.log.with_name("second-lander.log")
        with log.open("w") as out:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "smspulse", "land", "--data", str(self.pipeline.data), "--instance", "second"),
                stdout=out,
                stderr=out,
            )

        def count_assignments() -> int:
            return len(re.findall("landing [1-9][0-9]* partitions", log.read_text()))

        try:
            await until(lambda: count_assignments() > 0, _PATIENCE_S)
            yield count_assignments
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def recovery(self) -> float:
        """Send a webhook to each partition; return the seconds until all have landed.

        Raises:
            NotRecoveredError: It took too long.
        """
        began = time.monotonic()
        ids = {next(of) for of in self._ids}
        self._url = self._url or self.pipeline.source(PROBE)
        try:
            async with asyncio.timeout(_RECOVERY_S), aiohttp.ClientSession() as session:
                await asyncio.gather(*(self._send(session, sms_id) for sms_id in ids))
                while not ids <= self._landed:
                    await asyncio.sleep(0.1)
                    self._look()
        except TimeoutError:
            msg = f"probes {sorted(ids - self._landed)} had not landed after {_RECOVERY_S:g} s"
            raise NotRecoveredError(msg) from None
        return time.monotonic() - began

    async def _send(self, session: aiohttp.ClientSession, sms_id: int) -> None:
        body = json.dumps({"sms_id": sms_id, "status_id": 7, "device_id": 1}).encode()
        while True:
            try:
                async with session.post(self._url, data=body, headers={"Content-Type": "application/json"}) as answer:
                    if answer.status == 202:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)

    def _look(self) -> None:
        """Collect the probes in new files. A query of the views would slow down the traffic."""
        for path in self.pipeline.data.glob("messages/date=*/sms.messages+*.parquet"):
            if path.name not in self._seen:
                self._seen.add(path.name)
                table = pq.read_table(path, columns=["sms_id"], filters=[("source", "=", PROBE)])
                self._landed.update(table.column("sms_id").to_pylist())
