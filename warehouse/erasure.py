"""Erasure: what was stored of phone numbers is taken out of every file; rows stay, so no count changes.

Which messages they were is kept in `erasure.json`, without the numbers, until Kafka was told (`smspulse.erase`): the
files do not know it any more when a run that was interrupted is done again.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gateway.phone_numbers import spellings
from warehouse import landing, swap, views
from warehouse.compaction import layout
from warehouse.errors import DamagedFileError
from warehouse.partition_log import UNKNOWN, PartitionLog

PENDING: Final = "erasure.json"
_ADDRESSES: Final = ("address", "recipient", "streamed", "rebuilt")
_CONTENTS: Final = ("body", "text", "image_url")
"""Columns that tell of a person; no other one holds what the sender of a webhook wrote of somebody. Of a row in which
a number is found in any of them, the contents go, and of the addresses those that are the number."""
ERASED: Final = "erased"
"""In the place of an address or a body: null would be a fact less of the message, or a body that was lost."""
_PLACE: Final = ("topic", "partition", "incarnation", "offset", "source", "sms_id", "kind")
_DATASETS: Final = ("raw", "messages", "base", "deadletters", "differences")
_BATCH: Final = 60_000
_CHUNK: Final = 1 << 24
_OVERLAP: Final = 256
_BETWEEN_DIGITS: Final = r"[^0-9]{0,3}(?:\(0\)[^0-9]{0,3})?"
"""Also a trunk zero in brackets: `+49 (0)157`."""


@dataclass(slots=True)
class Erased:
    """What a run did.

    Args:
        rows: Rows taken out of, by dataset.
        files: Files written anew, by dataset.
        keys: Of messages, with their partitions, whose records in Kafka tell of the numbers.
        until: Offset behind the newest record that does, by the log of its partition.
    """

    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    keys: set[tuple[int, str]] = field(default_factory=set)
    until: dict[PartitionLog, int] = field(default_factory=dict)


def pattern(numbers: tuple[str, ...]) -> str:
    """Return a regular expression of numbers in every way to write their digits: for RE2, and for Python's `re`.

    Raises:
        ValueError: One has fewer than five digits, which would be found in what is no number.
    """
    spelled = []
    for number in numbers:
        for digits in spellings(number):
            if len(digits) < 5:  # noqa: PLR2004
                raise ValueError(number)
            spelled.append(_BETWEEN_DIGITS.join(digits))
    return f"(?:^|[^0-9])(?:00)?(?:{'|'.join(spelled)})(?:[^0-9]|$)"


def erase(data: Path, numbers: tuple[str, ...]) -> Erased:
    """Take numbers, and what was written to or from them, out of every file. Readers and landers go on meanwhile.

    A run that was interrupted is to be done again; it ends what the first one began.

    Args:
        data: The data folder.
        numbers: Each in every spelling that differs by more than punctuation.

    Raises:
        DamagedFileError: A file cannot be read. What was erased before stays erased.
        CannotExchangeError: The file system cannot do it.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    expression = pattern(numbers)
    done = Erased()
    with swap.upkeep(data) as scratch:
        pending = data / PENDING
        if pending.exists():
            before = json.loads(pending.read_text())
            done.keys |= {(partition, key) for partition, key in before["keys"]}
            done.until |= {PartitionLog(topic, partition, *log): end for topic, partition, *log, end in before["until"]}
        found = {name: _find(data / name, name, expression, done) for name in _DATASETS}
        temporary = scratch / PENDING
        until = [[*place, offset] for place, offset in sorted(done.until.items())]
        temporary.write_text(json.dumps({"keys": sorted(done.keys), "until": until}))
        landing.replace(data, temporary, pending)
        for name, paths in found.items():
            folders = [data / name] if name in {"base", "differences"} else sorted({path.parent for path in paths})
            if name == "base" and paths:
                swap.turn(data / name)
            for folder in folders:
                gone = [path for path in paths if path.is_relative_to(folder)]
                if not gone:
                    continue
                come = {}
                for path in gone:
                    landed = landing.LANDED.fullmatch(path.name)
                    place = path.with_name(
                        f"{landing.stem(landed) if landed else _partition(path)}-{swap.mark()}.parquet"
                    )
                    come[place] = scratch / place.name
                    done.rows[name] = done.rows.get(name, 0) + _without(path, come[place], expression, *layout(name))
                    landing.keep_age(path, come[place])
                found_covered = views.covered(data)
                if name == "base" and found_covered:  # networks were counted by numbers: to be counted anew
                    come[folder / views.COVERED] = path = scratch / views.COVERED
                    path.write_text(found_covered._replace(sums="").json())
                swap.swap(folder, scratch, gone, come)
                for path in come.values():
                    path.unlink()
                done.files[name] = done.files.get(name, 0) + len(gone)
        views.publish(data)
    return done


def _find(folder: Path, name: str, expression: str, done: Erased) -> list[Path]:
    """Return the files that tell of the numbers, and note which messages and offsets they are."""
    paths = []
    for path in sorted(folder.glob("date=*/*.parquet")):
        with _reading(path) as file:
            there = [c for c in (*_ADDRESSES, *_CONTENTS, *_PLACE) if c in file.schema_arrow.names]
            hit = False
            for batch in file.iter_batches(_BATCH, columns=there):
                rows = batch.filter(_told(batch, expression))
                hit = hit or rows.num_rows > 0
                for row in rows.select([c for c in there if c in _PLACE]).to_pylist():
                    _note(row, done)
        if hit:
            paths.append(path)
    return paths


def _note(row: dict[str, Any], done: Erased) -> None:
    if "topic" not in row:
        return  # what is in base files alone, the stream has forgotten
    log = PartitionLog(row["topic"], row["partition"], row.get("incarnation") or UNKNOWN)
    done.until[log] = max(done.until.get(log, 0), row["offset"] + 1)
    if row.get("sms_id") is not None and row.get("kind", "status") == "status":
        done.keys.add((row["partition"], f"{row['source']}:{row['sms_id']}"))


def _partition(path: Path) -> str:
    """Return the partition of a file of base or differences."""
    return path.stem.partition("-")[0]


def _told(batch: pa.RecordBatch, expression: str) -> "pa.Array[Any]":
    found = pa.array([False] * batch.num_rows)
    for name in (*_ADDRESSES, *_CONTENTS):
        if name in batch.schema.names:
            found = pc.or_(found, _matches(batch[name], expression))
    return found


def _matches(column: "pa.Array[Any]", expression: str) -> "pa.Array[Any]":
    return pc.and_kleene(pc.match_substring_regex(column, expression), pc.is_valid(column))  # null is no match


def _without(path: Path, target: Path, expression: str, size: int, codec: str) -> int:
    """Write a file anew without what it tells of the numbers; return from how many rows it was taken."""
    rows = 0
    with (
        _reading(path) as file,
        pq.ParquetWriter(
            target, file.schema_arrow, compression=codec, **landing.encodings(file.schema_arrow)
        ) as writer,
    ):
        for batch in file.iter_batches(size):
            told = _told(batch, expression)
            rows += pc.sum(told).as_py() or 0
            columns = []
            for field_, column in zip(batch.schema, batch.columns, strict=True):
                if field_.name in _ADDRESSES:
                    new = pc.if_else(_matches(column, expression), pa.scalar(ERASED, column.type), column)
                elif field_.name in _CONTENTS:
                    left = ERASED.encode() if field_.name == "body" else None
                    new = pc.if_else(told, pa.scalar(left, column.type), column)
                else:
                    new = column
                columns.append(new)
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=batch.schema))
    return rows


def _reading(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise DamagedFileError(path, type(error).__name__) from error


def told_kafka(data: Path) -> None:
    """Say that Kafka was told of every message in question.

    Raises:
        OSError: The data folder is not writable.
    """
    (data / PENDING).unlink(missing_ok=True)


def holding(data: Path, numbers: tuple[str, ...]) -> Iterator[Path]:
    """Return the files of the data folder in whose bytes a number stands; what is compressed shows nothing."""
    expression = re.compile(pattern(numbers).encode())
    for path in sorted(data.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink() and _holds(path, expression):
                yield path
        except FileNotFoundError:  # gone meanwhile
            continue


def _holds(path: Path, expression: re.Pattern[bytes]) -> bool:
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            told = tail + chunk.rstrip(b"\0")  # Kafka makes its indices of 10 MB of nothing each
            if expression.search(told):
                return True
            tail = told[-_OVERLAP:]
    return False
