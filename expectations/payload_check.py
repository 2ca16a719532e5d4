"""`smspulse check payload`: generation and errors of a gateway's payloads, before the gateway is connected."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from uuid_utils import uuid7

from core import records, topics
from expectations.quality_check import CheckReport
from expectations.runner import run_checks
from expectations.settings import CheckSettings
from gateway.errors import UnreadablePayload
from gateway.events import StatusReport
from gateway.payloads import parse_with_fields
from gateway.statuses import StatusCode
from ingest.request_body import parse_codings, remove_codings, too_large_error
from ingest.settings import IngestSettings
from warehouse.catalog import publish_views
from warehouse.sink.parquet_files import land_rows
from warehouse.sink.partition_records import PartitionRecords
from warehouse.sink.record_conversion import build_table

# Fields of a payload, in all generations.
_STATUS_FIELDS: Final = frozenset(
    ("sms_id", "status_id", "status_message", "sendto", "senttime", "channel_id", "device_id", "sim")
)
_INCOMING_FIELDS: Final = frozenset((
    *("sms_id", "type", "device_id", "channel_id", "sim", "date", "date_sent", "address", "body", "img_url"),
    *("internal_id", "device_name"),
))  # fmt: skip
# Name of the source in the temporary warehouse.
_SOURCE: Final = b"sample"
# Expectations whose faults were printed before, each by itself.
_REPORTED_EXPECTATIONS: Final = ("raw_readable", "raw_flawless")


@dataclass(frozen=True, slots=True)
class PayloadReport:
    """The verdict on one payload. It names fields, never their values, which may be personal.

    Args:
        generation: Generation of the gateway's payloads; None if the payload cannot be read.
        faults: Its errors.
        unknown: Fields of no generation. They are stored, and never read.
    """

    generation: str | None
    faults: tuple[str, ...]
    unknown: tuple[str, ...] = ()


def decode_request_body(sample: bytes, content_encoding: str) -> bytes:
    """Return the body that ingest would store of a request.

    Raises:
        RefusedBodyError: Ingest would refuse it.
    """
    settings = IngestSettings()
    if len(sample) > settings.max_body_bytes:
        raise too_large_error(settings.max_body_bytes)
    body, _ = remove_codings(sample, parse_codings([content_encoding]), settings.max_body_bytes)
    return body


def check_payload(body: bytes, zone: tzinfo = UTC, content_type: bytes | None = None) -> PayloadReport:
    """Return the verdict on a payload. Uses the parser of the stream, so both accept the same payloads.

    Args:
        body: The body of the request.
        zone: Zone of times without one.
        content_type: Header of the request, for its charset.
    """
    try:
        payload, event = parse_with_fields(body, zone, content_type)
    except UnreadablePayload as error:
        return PayloadReport(None, (str(error),))
    is_status = isinstance(event, StatusReport)
    faults = tuple(f"{field} cannot be read and would be null" for field in event.flaws)
    unknown = payload.keys() - (_STATUS_FIELDS if is_status else _INCOMING_FIELDS)
    return PayloadReport(_name_generation(payload, is_status=is_status), faults, tuple(sorted(unknown)))


def _name_generation(payload: Mapping[str, Any], *, is_status: bool) -> str:
    is_old = "sim" in payload and "channel_id" not in payload
    if is_status:
        return "status report, older (sim in place of channel_id)" if is_old else "status report, current"
    if payload.get("img_url"):
        return "incoming image, current"
    if "type" in payload:
        return "incoming text, current"
    return f"incoming message, {'oldest (sim' if is_old else 'older (channel_id'}, no type)"


def run_raw_suite(
    bodies: Sequence[bytes], zone: tzinfo, content_type: bytes | None, statuses: Mapping[int, StatusCode]
) -> CheckReport:
    """Run the suite `raw` on payloads, as if they had been received now.

    Args:
        bodies: The bodies of the requests.
        zone: Zone of times without one.
        content_type: Header of the requests.
        statuses: Meaning of each status id in the stream.

    Raises:
        MissingExtraError: Great Expectations is not installed.
    """
    # It would log the path of a temporary folder.
    logging.getLogger("warehouse.catalog").setLevel(logging.WARNING)
    now = datetime.now(UTC)
    count, at = len(bodies), int(now.timestamp() * 1000)
    # As ingest writes them, so that the checks of receipts hold.
    same = [(records.HEADER_RECEIVED_AT, b"%d" % at), (records.HEADER_CONTENT_TYPE, content_type)]
    headers = [
        [(records.HEADER_SOURCE, _SOURCE), (records.HEADER_INGEST_ID, str(uuid7()).encode()), *same] for _ in bodies
    ]
    run = PartitionRecords(topics.RAW, 0, range(count), [at] * count, [None] * count, bodies, headers)
    with TemporaryDirectory(prefix="smspulse-payload.") as folder:
        publish_views(Path(folder))
        land_rows(Path(folder), 0, build_table(run, zone))
        report = run_checks(Path(folder), CheckSettings(), now, suites=("raw",), statuses=statuses)
    rows = tuple(row for row in report.rows if row.expectation not in _REPORTED_EXPECTATIONS)
    return replace(report, rows=rows, note=f"payloads checked: {count:,}, as if they had been received now")
