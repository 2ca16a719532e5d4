"""Erasure: what was stored of phone numbers is taken out of every file; rows stay, so no count changes.

Which messages they were is kept in `erasure.json`, without the numbers, until Kafka was told (`smspulse erase`): the
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

from gateway.number_search import NumberSearch
from gateway.phone_numbers import national_form
from warehouse import catalog
from warehouse.durable_files import replace_file
from warehouse.errors import DamagedFileError
from warehouse.file_names import LANDED_FILE_NAME, format_merged_stem
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.compaction import choose_file_layout
from warehouse.maintenance.number_matching import (
    erase_column_values,
    match_columns,
    match_rows,
    may_hold_number,
)
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog
from warehouse.sink import parquet_files
from warehouse.watermark import WATERMARK_FILE, read_base_watermark

PENDING_ERASURE_FILE: Final = "erasure.json"
_ADDRESS_COLUMNS: Final = ("address", "recipient")
_GATEWAY_ID_COLUMNS: Final = ("sms_id", "device_id")
"""Ids that the gateway gives, by which everything is counted: large enough for a number, and left as they are."""
_ORIGIN_COLUMNS: Final = ("topic", "partition", "incarnation", "offset", "source", "sms_id", "kind", "ingest_id")
# The log first: a dead letter has the beginning of its webhook alone, in which a number may be cut.
_SEARCHED_DATASETS: Final = ("raw", "messages", "base", "deadletters", "differences", "alerts")
"""Of the others, `quality` and what is counted have no text but names of ours and keys of messages."""
_BATCH_ROWS: Final = 60_000
_CHUNK_BYTES: Final = 1 << 24
_OVERLAP_BYTES: Final = 256


@dataclass(slots=True)
class ErasureResult:
    """What a run did.

    Args:
        rows: Rows taken out of, by dataset.
        files: Files written anew, by dataset.
        keys: Of messages, with their partitions, whose records in Kafka tell of the numbers.
        end_offsets: Offset behind the newest record that does, by the log of its partition.
        webhooks: The `ingest_id` of each webhook that does.
        ids: Rows whose id is one of the numbers, by dataset and column. They stay.
    """

    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    keys: set[tuple[int, str]] = field(default_factory=set)
    end_offsets: dict[PartitionLog, int] = field(default_factory=dict)
    webhooks: set[str] = field(default_factory=set)
    ids: dict[tuple[str, str], int] = field(default_factory=dict)


def create_number_search(data: Path, numbers: tuple[str, ...]) -> tuple[NumberSearch, list[str]]:
    """Return what finds numbers in a data folder, and the national forms of them that it does not look for.

    A national form is looked for if it begins with a zero, as no id does, and no address in the folder is a number of
    another country that is written alike there.

    Raises:
        ValueError: One has too few digits.
        DamagedFileError: A file cannot be read.
    """
    search = NumberSearch(numbers)
    forms = {form.digits: form for number in numbers if (form := national_form(number))}
    taken = {digits for digits in forms if not digits.startswith("0")}
    patterns = [(form.any_country_pattern, form.own_pattern) for digits, form in forms.items() if digits not in taken]
    if patterns:
        every, own = ("|".join(expressions) for expressions in zip(*patterns, strict=True))
        for address in _find_foreign_addresses(data, every, own):
            taken |= {digits for digits, form in forms.items() if re.match(form.any_country_pattern, address)}
    given = {re.sub(r"[^0-9]", "", number) for number in numbers}
    national = tuple(forms.keys() - taken)
    return (NumberSearch(numbers, national) if national else search), sorted(taken - given)


def _find_foreign_addresses(data: Path, every: str, own: str) -> Iterator[str]:
    """Yield the addresses in a data folder that match one regular expression and not the other."""
    for name in ("raw", "messages", "base"):
        for path in sorted((data / name).glob("date=*/*.parquet")):
            with _open_parquet_file(path) as file:
                columns = [column for column in _ADDRESS_COLUMNS if column in file.schema_arrow.names]
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    for column in batch.columns:
                        other = pc.and_not(
                            pc.match_substring_regex(column, every), pc.match_substring_regex(column, own)
                        )
                        yield from column.filter(pc.fill_null(other, False)).to_pylist()


def erase_from_files(data: Path, search: NumberSearch) -> ErasureResult:
    """Take numbers, and what was written to or from them, out of every file. Readers and landers go on meanwhile.

    A run that was interrupted is to be done again; it ends what the first one began.

    Args:
        data: The data folder.
        search: What finds the numbers, as `create_number_search` returns it.

    Raises:
        DamagedFileError: A file cannot be read. What was erased before stays erased.
        CannotExchangeError: The file system cannot do it.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    result = ErasureResult()
    with atomic_replace.lock_maintenance(data) as scratch:
        pending = data / PENDING_ERASURE_FILE
        if pending.exists():
            before = json.loads(pending.read_text())
            result.keys |= {(partition, key) for partition, key in before["keys"]}
            result.end_offsets |= {
                PartitionLog(topic, partition, *log): end for topic, partition, *log, end in before["until"]
            }
            result.webhooks |= set(before.get("webhooks", ()))
        found = {name: _find_matching_files(data / name, name, search, result) for name in _SEARCHED_DATASETS}
        until = [[*place, offset] for place, offset in sorted(result.end_offsets.items())]
        record = {"keys": sorted(result.keys), "until": until, "webhooks": sorted(result.webhooks)}
        with replace_file(data, pending) as file:
            file.write(json.dumps(record).encode())
        for name, paths in found.items():
            folders = [data / name] if name in {"base", "differences"} else sorted({path.parent for path in paths})
            if name == "base" and paths:
                atomic_replace.add_rotating_seed(data / name)
            for folder in folders:
                removed = [path for path in paths if path.is_relative_to(folder)]
                if not removed:
                    continue
                added = {}
                for path in removed:
                    landed = LANDED_FILE_NAME.fullmatch(path.name)
                    stem = format_merged_stem(landed) if landed else _parse_file_partition(path)
                    place = path.with_name(f"{stem}-{atomic_replace.unique_suffix()}.parquet")
                    added[place] = scratch / place.name
                    rows = _rewrite_without_numbers(
                        path, added[place], search, _select_webhook_ids(name, result), *choose_file_layout(name)
                    )
                    result.rows[name] = result.rows.get(name, 0) + rows
                    parquet_files.copy_landing_time(path, added[place])
                watermark = read_base_watermark(data)
                if name == "base" and watermark:  # networks were counted by numbers: to be counted anew
                    added[folder / WATERMARK_FILE] = path = scratch / WATERMARK_FILE
                    path.write_text(watermark._replace(sums="").to_json())
                atomic_replace.replace_files(folder, scratch, removed, added)
                for path in added.values():
                    path.unlink()
                result.files[name] = result.files.get(name, 0) + len(removed)
        catalog.publish_views(data)
    return result


def _find_matching_files(folder: Path, name: str, search: NumberSearch, result: ErasureResult) -> list[Path]:
    """Return the files that tell of the numbers, and note which messages and offsets they are."""
    paths = []
    for path in sorted(folder.glob("date=*/*.parquet")):
        with _open_parquet_file(path) as file:
            wanted = [
                f.name
                for f in file.schema_arrow
                if may_hold_number(f) or f.name in (*_ORIGIN_COLUMNS, *_GATEWAY_ID_COLUMNS)
            ]
            hit = False
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                rows = batch.filter(match_rows(match_columns(batch, search), batch, _select_webhook_ids(name, result)))
                hit = hit or rows.num_rows > 0
                for row in rows.select([c for c in wanted if c in _ORIGIN_COLUMNS]).to_pylist():
                    _record_match(row, result)
                for column in (c for c in _GATEWAY_ID_COLUMNS if c in wanted):
                    same = pc.sum(pc.is_in(batch[column], pa.array(search.ids, pa.int64()))).as_py() or 0
                    if same:
                        result.ids[name, column] = result.ids.get((name, column), 0) + same
        if hit:
            paths.append(path)
    return paths


def _record_match(row: dict[str, Any], result: ErasureResult) -> None:
    if "topic" not in row:
        return  # what is in base files alone, the stream has forgotten
    log = PartitionLog(row["topic"], row["partition"], row.get("incarnation") or UNKNOWN_INCARNATION)
    result.end_offsets[log] = max(result.end_offsets.get(log, 0), row["offset"] + 1)
    if row.get("ingest_id") is not None:
        result.webhooks.add(row["ingest_id"])
    if row.get("sms_id") is not None and row.get("kind", "status") == "status":
        result.keys.add((row["partition"], f"{row['source']}:{row['sms_id']}"))


def _parse_file_partition(path: Path) -> str:
    """Return the partition of a file of base or differences."""
    return path.stem.partition("-")[0]


def _select_webhook_ids(dataset: str, result: ErasureResult) -> set[str]:
    """Return the ids by which rows of a dataset are found too."""
    return result.webhooks if dataset == "deadletters" else set()


def _rewrite_without_numbers(
    path: Path, target: Path, search: NumberSearch, webhooks: set[str], size: int, codec: str
) -> int:
    """Write a file anew without what it tells of the numbers; return from how many rows it was taken."""
    count = 0
    with (
        _open_parquet_file(path) as file,
        pq.ParquetWriter(
            target, file.schema_arrow, compression=codec, **parquet_files.column_encodings(file.schema_arrow)
        ) as writer,
    ):
        for batch in file.iter_batches(size):
            found = match_columns(batch, search)
            rows = match_rows(found, batch, webhooks)
            count += pc.sum(rows).as_py() or 0
            columns = [
                erase_column_values(batch[column.name], column.name, found.get(column.name), rows)
                for column in batch.schema
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=batch.schema))
    return count


def _open_parquet_file(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise DamagedFileError(path, type(error).__name__) from error


def complete_pending_erasure(data: Path) -> None:
    """Say that Kafka was told of every message in question.

    Raises:
        OSError: The data folder is not writable.
    """
    (data / PENDING_ERASURE_FILE).unlink(missing_ok=True)


def find_files_with_numbers(data: Path, search: NumberSearch) -> Iterator[Path]:
    """Return the files of the data folder in whose bytes a number stands; what is compressed shows nothing."""
    expression = re.compile(search.expression.encode())
    for path in sorted(data.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink() and _has_number_in_bytes(path, expression):
                yield path
        except FileNotFoundError:  # gone meanwhile
            continue


def _has_number_in_bytes(path: Path, expression: re.Pattern[bytes]) -> bool:
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            window = tail + chunk.rstrip(b"\0")  # Kafka makes its indices of 10 MB of nothing each
            if expression.search(window):
                return True
            tail = window[-_OVERLAP_BYTES:]
    return False
