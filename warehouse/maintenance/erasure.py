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
from warehouse.datasets import RECENT_BASE, RECENT_UPDATES
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.file_merge import choose_file_layout
from warehouse.maintenance.number_matching import erase_column_values, match_columns, match_rows, may_hold_number
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog
from warehouse.sink import parquet_files
from warehouse.sink.range_metadata import translate_damage
from warehouse.watermark import WATERMARK_FILE, read_base_watermark, read_recent_watermark

PENDING_ERASURE_FILE: Final = "erasure.json"
_ADDRESS_COLUMNS: Final = ("address", "recipient")
# Ids that the gateway assigns, by which everything is counted. They can equal a phone number, and stay as they are.
_GATEWAY_ID_COLUMNS: Final = ("sms_id", "device_id")
_ORIGIN_COLUMNS: Final = ("topic", "partition", "incarnation", "offset", "source", "sms_id", "kind", "ingest_id")
# The log first, because the webhooks that are found in it decide which dead letters are erased.
# The other datasets have no text but names of this project and keys of messages.
_SEARCHED_DATASETS: Final = (
    *("raw", "messages", "base", RECENT_BASE, RECENT_UPDATES, "deadletters", "differences", "alerts"),
)
# Their files are replaced together: readers list their folders more than once.
_WHOLE_DATASETS: Final = {"base", RECENT_BASE, RECENT_UPDATES, "differences"}
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
    for name in ("raw", "messages", "base", RECENT_BASE, RECENT_UPDATES):
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
        run = _FileErasure(data, scratch, search)
        run.erase_numbers()
        catalog.publish_views(data)
    return run.result


class _FileErasure:
    """One run. `result` also has the messages that an interrupted run found: the files do not show them any more."""

    def __init__(self, data: Path, scratch: Path, search: NumberSearch) -> None:
        self._data, self._scratch, self._search = data, scratch, search
        self._pending = data / PENDING_ERASURE_FILE
        self.result = ErasureResult()

    def erase_numbers(self) -> None:
        """Find all files first, so that the messages are recorded before any file is changed."""
        # The files do not show any more what an interrupted run has erased, but Kafka may still have it.
        self._load_pending()
        found = {name: self._find_files(name) for name in _SEARCHED_DATASETS}
        self._save_pending()
        for name, paths in found.items():
            is_whole = name in _WHOLE_DATASETS
            if is_whole and paths:
                atomic_replace.add_rotating_seed(self._data / name)
            for folder in [self._data / name] if is_whole and paths else sorted({path.parent for path in paths}):
                self._rewrite_files(name, folder, [path for path in paths if path.is_relative_to(folder)])

    def _load_pending(self) -> None:
        if self._pending.exists():
            before = json.loads(self._pending.read_text())
            self.result.keys |= {(partition, key) for partition, key in before["keys"]}
            for topic, partition, *incarnation, end in before["until"]:
                self.result.end_offsets[PartitionLog(topic, partition, *incarnation)] = end
            self.result.webhooks |= set(before.get("webhooks", ()))

    def _save_pending(self) -> None:
        until = [[*log, offset] for log, offset in sorted(self.result.end_offsets.items())]
        record = {"keys": sorted(self.result.keys), "until": until, "webhooks": sorted(self.result.webhooks)}
        write_file_atomically(self._pending, json.dumps(record))

    def _find_files(self, dataset: str) -> list[Path]:
        """Return the files that contain the numbers, and record their messages and offsets."""
        found = []
        for path in sorted((self._data / dataset).glob("date=*/*.parquet")):
            with _open_parquet_file(path) as file:
                names = [
                    field.name
                    for field in file.schema_arrow
                    if may_hold_number(field) or field.name in (*_ORIGIN_COLUMNS, *_GATEWAY_ID_COLUMNS)
                ]
                matching_rows = 0
                for batch in file.iter_batches(_BATCH_ROWS, columns=names):
                    rows = batch.filter(self._match_rows(dataset, batch, match_columns(batch, self._search)))
                    matching_rows += rows.num_rows
                    for row in rows.select([name for name in names if name in _ORIGIN_COLUMNS]).to_pylist():
                        self._record_match(row)
                    for name in set(_GATEWAY_ID_COLUMNS) & set(names):
                        same = pc.sum(pc.is_in(batch[name], pa.array(self._search.ids, pa.int64()))).as_py()
                        if same:
                            self.result.ids[dataset, name] += same
            if matching_rows:
                found.append(path)
        return found

    def _match_rows(self, dataset: str, batch: pa.RecordBatch, found: "dict[str, pa.Array[Any]]") -> "pa.Array[Any]":
        # A dead letter has only the beginning of its webhook, in which a number may be cut.
        return match_rows(found, batch, self.result.webhooks if dataset == "deadletters" else set())

    def _record_match(self, row: dict[str, Any]) -> None:
        if "topic" not in row:
            # The stream has dropped messages that are only in base files.
            return
        log = PartitionLog(row["topic"], row["partition"], row.get("incarnation") or UNKNOWN_INCARNATION)
        self.result.end_offsets[log] = max(self.result.end_offsets.get(log, 0), row["offset"] + 1)
        if row.get("ingest_id") is not None:
            self.result.webhooks.add(row["ingest_id"])
        if row.get("sms_id") is not None and row.get("kind", "status") == "status":
            self.result.keys.add((row["partition"], f"{row['source']}:{row['sms_id']}"))

    def _rewrite_files(self, dataset: str, folder: Path, removed: list[Path]) -> None:
        """Replace files of a folder by files without the numbers, in one step."""
        added = {}
        for path in removed:
            place = atomic_replace.name_successor(path)
            added[place] = self._scratch / place.name
            self.result.rows[dataset] += self._rewrite_file(dataset, path, added[place])
            parquet_files.copy_landing_time(path, added[place])
        readers = {"base": read_base_watermark, RECENT_BASE: read_recent_watermark}
        watermark = readers[dataset](self._data) if dataset in readers else None
        # Networks were counted by numbers. Without the fingerprint, they are counted again.
        if watermark:
            added[folder / WATERMARK_FILE] = path = self._scratch / WATERMARK_FILE
            path.write_text(watermark._replace(sums="").to_json())
        atomic_replace.replace_files(folder, self._scratch, removed, added)
        self.result.files[dataset] += len(removed)

    def _rewrite_file(self, dataset: str, path: Path, target: Path) -> int:
        """Rewrite a file without the numbers; return the number of rows from which values were erased."""
        count = 0
        size, codec = choose_file_layout(dataset)
        with _open_parquet_file(path) as file:
            schema = file.schema_arrow
            encodings = parquet_files.column_encodings(schema)
            with pq.ParquetWriter(target, schema, compression=codec, **encodings) as writer:
                for batch in file.iter_batches(size):
                    found = match_columns(batch, self._search)
                    rows = self._match_rows(dataset, batch, found)
                    count += pc.sum(rows).as_py() or 0
                    columns = [
                        erase_column_values(batch[name], name, found.get(name), rows) for name in batch.schema.names
                    ]
                    writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=batch.schema))
        return count


def _open_parquet_file(path: Path) -> pq.ParquetFile:
    with translate_damage(path):
        return pq.ParquetFile(path)


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
