"""Erasure: removes phone numbers, and messages to or from them, from every file. Rows stay, so no count changes.

`erasure.json` keeps the keys of these messages, without the numbers, until their records in Kafka are replaced
(`smspulse erase`). If an interrupted run is repeated, the files do not show them any more.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.atomic_file import write_file_atomically
from gateway.number_search import NumberSearch
from gateway.phone_numbers import national_form
from warehouse import catalog
from warehouse.errors import DamagedFileError
from warehouse.file_names import LANDED_FILE_NAME, format_merged_stem
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.compaction import choose_file_layout
from warehouse.maintenance.number_matching import erase_column_values, match_columns, match_rows, may_hold_number
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog
from warehouse.sink import parquet_files
from warehouse.watermark import WATERMARK_FILE, read_base_watermark

PENDING_ERASURE_FILE: Final = "erasure.json"
_ADDRESS_COLUMNS: Final = ("address", "recipient")
# Ids that the gateway assigns, by which everything is counted. They can equal a phone number, and stay as they are.
_GATEWAY_ID_COLUMNS: Final = ("sms_id", "device_id")
_ORIGIN_COLUMNS: Final = ("topic", "partition", "incarnation", "offset", "source", "sms_id", "kind", "ingest_id")
# The log first: a dead letter has only the beginning of its webhook, in which a number may be cut.
# The other datasets have no text but names of this project and keys of messages.
_SEARCHED_DATASETS: Final = ("raw", "messages", "base", "deadletters", "differences", "alerts")
# Limits the memory of a large file.
_BATCH_ROWS: Final = 60_000
_CHUNK_BYTES: Final = 1 << 24
# A number can begin in one chunk and end in the next.
_OVERLAP_BYTES: Final = 256


@dataclass(slots=True)
class ErasureResult:
    """Result of a run.

    Args:
        rows: Number of rows from which values were erased, by dataset.
        files: Number of rewritten files, by dataset.
        keys: Partition and key of each message whose records in Kafka contain the numbers.
        end_offsets: Offset after the newest such record, by the log of its partition.
        webhooks: The `ingest_id` of each such webhook.
        ids: Number of rows whose id equals one of the numbers, by dataset and column. They stay.
    """

    rows: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    keys: set[tuple[int, str]] = field(default_factory=set)
    end_offsets: dict[PartitionLog, int] = field(default_factory=dict)
    webhooks: set[str] = field(default_factory=set)
    ids: Counter[tuple[str, str]] = field(default_factory=Counter)


def create_number_search(data: Path, numbers: tuple[str, ...]) -> tuple[NumberSearch, list[str]]:
    """Return the search for numbers in a data folder, and the national forms that it does not find.

    A national form is searched for if it begins with a zero, as no id does, and if no address in the folder is a number
    of another country with the same national form.

    Raises:
        ValueError: A number has too few digits.
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
    """Remove numbers, and messages to or from them, from every file. Readers and sinks go on meanwhile.

    Repeat a run that was interrupted. The second run completes the first one.

    Args:
        data: The data folder.
        search: Search for the numbers, as `create_number_search` returns it.

    Raises:
        DamagedFileError: A file cannot be read. Values that were erased before stay erased.
        CannotExchangeError: The file system cannot exchange folders.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    with atomic_replace.lock_maintenance(data) as scratch:
        result = _load_pending_erasure(data)
        found = {name: _find_matching_files(data / name, name, search, result) for name in _SEARCHED_DATASETS}
        _save_pending_erasure(data, result)
        for name, paths in found.items():
            if name == "base" and paths:
                atomic_replace.add_rotating_seed(data / name)
            folders = [data / name] if name in {"base", "differences"} else sorted({path.parent for path in paths})
            for folder in folders:
                removed = [path for path in paths if path.is_relative_to(folder)]
                if removed:
                    _rewrite_files(data, folder, name, removed, scratch, search, result)
        catalog.publish_views(data)
    return result


def _load_pending_erasure(data: Path) -> ErasureResult:
    """Return the messages that an interrupted run has found: the files do not show them any more."""
    result = ErasureResult()
    pending = data / PENDING_ERASURE_FILE
    if pending.exists():
        before = json.loads(pending.read_text())
        result.keys |= {(partition, key) for partition, key in before["keys"]}
        result.end_offsets |= {
            PartitionLog(topic, partition, *log): end for topic, partition, *log, end in before["until"]
        }
        result.webhooks |= set(before.get("webhooks", ()))
    return result


def _save_pending_erasure(data: Path, result: ErasureResult) -> None:
    until = [[*place, offset] for place, offset in sorted(result.end_offsets.items())]
    record = {"keys": sorted(result.keys), "until": until, "webhooks": sorted(result.webhooks)}
    write_file_atomically(data / PENDING_ERASURE_FILE, json.dumps(record))


def _rewrite_files(
    data: Path,
    folder: Path,
    dataset: str,
    removed: list[Path],
    scratch: Path,
    search: NumberSearch,
    result: ErasureResult,
) -> None:
    """Replace files of a folder by files without the numbers, in one step."""
    added = {}
    for path in removed:
        landed = LANDED_FILE_NAME.fullmatch(path.name)
        # The name of a file of base or differences begins with its partition.
        stem = format_merged_stem(landed) if landed else path.stem.partition("-")[0]
        place = path.with_name(f"{stem}-{atomic_replace.unique_suffix()}.parquet")
        added[place] = scratch / place.name
        result.rows[dataset] += _rewrite_without_numbers(
            path, added[place], search, _select_webhook_ids(dataset, result), *choose_file_layout(dataset)
        )
        parquet_files.copy_landing_time(path, added[place])
    watermark = read_base_watermark(data)
    # Networks were counted by numbers. Without the fingerprint, the next rebuild counts them again.
    if dataset == "base" and watermark:
        added[folder / WATERMARK_FILE] = path = scratch / WATERMARK_FILE
        path.write_text(watermark._replace(sums="").to_json())
    atomic_replace.replace_files(folder, scratch, removed, added)
    result.files[dataset] += len(removed)


def _find_matching_files(folder: Path, name: str, search: NumberSearch, result: ErasureResult) -> list[Path]:
    """Return the files that contain the numbers, and record their messages and offsets."""
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
                        result.ids[name, column] += same
        if hit:
            paths.append(path)
    return paths


def _record_match(row: dict[str, Any], result: ErasureResult) -> None:
    if "topic" not in row:
        # The stream has dropped messages that are only in base files.
        return
    log = PartitionLog(row["topic"], row["partition"], row.get("incarnation") or UNKNOWN_INCARNATION)
    result.end_offsets[log] = max(result.end_offsets.get(log, 0), row["offset"] + 1)
    if row.get("ingest_id") is not None:
        result.webhooks.add(row["ingest_id"])
    if row.get("sms_id") is not None and row.get("kind", "status") == "status":
        result.keys.add((row["partition"], f"{row['source']}:{row['sms_id']}"))


def _select_webhook_ids(dataset: str, result: ErasureResult) -> set[str]:
    """Return ids of webhooks whose rows in a dataset are erased too."""
    return result.webhooks if dataset == "deadletters" else set()


def _rewrite_without_numbers(
    path: Path, target: Path, search: NumberSearch, webhooks: set[str], size: int, codec: str
) -> int:
    """Rewrite a file without the numbers; return the number of rows from which values were erased."""
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
    """Record that the records of all these messages in Kafka are replaced.

    Raises:
        OSError: The data folder is not writable.
    """
    (data / PENDING_ERASURE_FILE).unlink(missing_ok=True)


def find_files_with_numbers(data: Path, search: NumberSearch) -> Iterator[Path]:
    """Yield the files of the data folder whose bytes contain a number. Compressed data is not searched."""
    expression = re.compile(search.expression.encode())
    for path in sorted(data.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink() and _has_number_in_bytes(path, expression):
                yield path
        # Another process has deleted it meanwhile.
        except FileNotFoundError:
            continue


def _has_number_in_bytes(path: Path, expression: re.Pattern[bytes]) -> bool:
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            # Kafka allocates indices of 10 MB of zeros.
            window = tail + chunk.rstrip(b"\0")
            if expression.search(window):
                return True
            tail = window[-_OVERLAP_BYTES:]
    return False
