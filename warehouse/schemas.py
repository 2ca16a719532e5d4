"""Arrow schemas of the files of each dataset. A field's description is in its metadata, and so in every file."""

from typing import Any, Final

import pyarrow as pa

from warehouse.datasets import COUNT_COLUMNS

TIME_TYPE: Final = pa.timestamp("ms", tz="UTC")
_TEXTS: Final = pa.list_(pa.string())


def _field(name: str, kind: pa.DataType, description: str) -> "pa.Field[Any]":
    return pa.field(name, kind, metadata={"description": description})


POSITION_FIELDS: Final = (
    _field("topic", pa.string(), "Kafka topic of the record."),
    _field("partition", pa.int32(), "Kafka partition of the record."),
    _field("offset", pa.int64(), "Kafka offset of the record; with topic, partition and incarnation, its identity."),
    _field("recorded_at", TIME_TYPE, "Kafka's timestamp of the record, UTC."),
    _field(
        "incarnation", pa.string(), "Incarnation of the topic that the offset belongs to; null from releases up to 0.1."
    ),
)
_RECEIPT: Final = (
    _field("source", pa.string(), "Gateway account, as the webhook's path named it."),
    _field("ingest_id", pa.string(), "UUIDv7 given on receipt."),
    _field("received_at", TIME_TYPE, "When the webhook was accepted, UTC."),
)
RAW_SCHEMA: Final = pa.schema(
    [
        *POSITION_FIELDS,
        *_RECEIPT,
        _field("content_type", pa.string(), "Content-Type of the webhook."),
        _field("spooled", pa.bool_(), "Forwarded from ingest's spool, so it may be a second copy of the webhook."),
        _field("remote", pa.string(), "Address of the sender of the webhook, where the operator records it."),
        _field(
            "body",
            pa.binary(),
            "The exact bytes received, without their Content-Encoding; or the bytes that redaction left.",
        ),
        _field("kind", pa.string(), "status, incoming or unreadable."),
        _field("reason", pa.string(), "Why the body is unreadable; null otherwise."),
        _field("flaws", _TEXTS, "Fields that could not be read and are null."),
        _field("sms_id", pa.int64(), "The gateway's id of the message."),
        _field("status_id", pa.int32(), "Status reported; null for an incoming message."),
        _field("status_message", pa.string(), "The gateway's text about the status."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id."),
        _field("channel_id", pa.int32(), "SIM card, by the gateway's id."),
        _field("address", pa.string(), "Recipient of a status report, sender of an incoming message."),
        _field("sent_at", TIME_TYPE, "`senttime` of a status report, `date_sent` of an incoming message, UTC."),
        _field("phone_received_at", TIME_TYPE, "`date` of an incoming message: when the phone received it, UTC."),
        _field("message_type", pa.string(), "text, img, or what a later gateway sends; null for a status report."),
        _field("text", pa.string(), "Text of an incoming message."),
        _field("image_url", pa.string(), "Link to the image of an incoming message."),
        _field("internal_id", pa.int64(), "The phone's own id of an incoming message."),
        _field("device_name", pa.string(), "Name of the phone that received an incoming message."),
    ]
)
OBSERVATION_TYPE: Final = pa.struct(
    [
        _field("status_id", pa.int32(), "Status reported."),
        _field("device_id", pa.int64(), "Phone that it names."),
        _field("channel_id", pa.int32(), "SIM card that it names."),
        _field("sent_at", TIME_TYPE, "The report's `senttime`, UTC."),
        _field("first_received_at", TIME_TYPE, "When the first report like this was received, UTC."),
        _field("last_received_at", TIME_TYPE, "When the last report like this was received, UTC."),
    ]
)
MESSAGES_SCHEMA: Final = pa.schema(
    [
        _field("message_key", pa.string(), "`source:sms_id`, the key of the record."),
        _field("source", pa.string(), "Gateway account."),
        _field("sms_id", pa.int64(), "The gateway's id of the message."),
        _field("outcome", pa.string(), "Outcome of the message by this version."),
        _field("failure_class", pa.string(), "Why it failed; null unless it failed."),
        _field("last_status_id", pa.int32(), "Status that decides the outcome."),
        _field("is_ended", pa.bool_(), "No further report is expected."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id."),
        _field("channel_id", pa.int32(), "SIM card, by the gateway's id."),
        _field("recipient", pa.string(), "Phone number that the message went to."),
        _field("first_seen_at", TIME_TYPE, "When the first report was received, UTC."),
        _field("last_seen_at", TIME_TYPE, "When the last report was received, UTC."),
        _field("ended_at", TIME_TYPE, "When the deciding end was first reported, UTC."),
        _field("delivered_at", TIME_TYPE, "When delivery was first reported, UTC."),
        _field("attempts", pa.int32(), "How often the gateway tried."),
        _field("contradicted", pa.bool_(), "Two ends of different outcome were reported for one attempt."),
        _field("flags", _TEXTS, "Irregularities of the reports."),
        _field("queue_s", pa.float64(), "Seconds from pending to taken by the phone, as reports were received."),
        _field("device_s", pa.float64(), "Seconds from taken by the phone to sent, as reports were received."),
        _field("network_s", pa.float64(), "Seconds from sent to delivered, as reports were received."),
        _field("total_s", pa.float64(), "Seconds from the first report to the end, as reports were received."),
        _field("version", pa.int64(), "Number of facts known: the largest of a message is the newest."),
        _field("observations", pa.list_(OBSERVATION_TYPE), "The facts themselves."),
        _field("is_forgotten", pa.bool_(), "The stream dropped its state of the message; all other fields are null."),
        *POSITION_FIELDS,
    ]
)
BASE_SCHEMA: Final = pa.schema(
    [f for f in MESSAGES_SCHEMA if f.name not in {"is_forgotten", "topic", "partition", "offset", "incarnation"}]
)
DIFFERENCES_SCHEMA: Final = pa.schema(
    [
        _field("message_key", pa.string(), "`source:sms_id`."),
        _field("source", pa.string(), "Gateway account."),
        _field("sms_id", pa.int64(), "The gateway's id of the message."),
        _field("field", pa.string(), "Field that differs; `message` where one of the two has no such message."),
        _field("streamed", pa.string(), "Value of the stream."),
        _field("rebuilt", pa.string(), "Value that follows from the log."),
    ]
)
QUALITY_SCHEMA: Final = pa.schema(
    [
        _field("checked_at", TIME_TYPE, "When the data were checked, UTC."),
        _field("expectation", pa.string(), "Stable name of the expectation."),
        _field("dataset", pa.string(), "Dataset that it checks."),
        _field("severity", pa.string(), "critical, warning or info."),
        _field("success", pa.bool_(), "Whether it held."),
        _field("observed", pa.string(), "Offending values by scope, or the range of values if it held."),
        _field("expected", pa.string(), "Values that are right."),
        _field("meaning", pa.string(), "Problem if it does not hold."),
        _field("action", pa.string(), "Action to take then."),
        _field("rows", _TEXTS, "Some of the rows at fault, where they can be named."),
    ]
)
_HOUR: Final = _field("hour", TIME_TYPE, "Hour (UTC) of the first report.")
DELIVERY_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id."),
        _field("channel_id", pa.int32(), "SIM card, by the gateway's id."),
        _HOUR,
        *(_field(name, pa.int64(), "Count, as in delivery_hourly.") for name in COUNT_COLUMNS),
        *(
            _field(name, pa.int64(), "Messages that reached this stage or a later one.")
            for name in ("queued", "accepted", "sent")
        ),
        _field("last_seen_at", TIME_TYPE, "When the last report of one of them was received, UTC."),
        _field("oldest_open_at", TIME_TYPE, "First report of the oldest one that is open, UTC."),
    ]
)
FAILURES_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id."),
        _field("failure_class", pa.string(), "Why they failed."),
        _field("last_status_id", pa.int32(), "Status that says so."),
        _field("messages", pa.int64(), "Count of messages."),
    ]
)
NETWORKS_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _field("country", pa.string(), "As in delivery_by_prefix."),
        _field("network_prefix", pa.string(), "As in delivery_by_prefix."),
        _field("carrier", pa.string(), "As in delivery_by_prefix."),
        *(_field(n, pa.int64(), "Count, as in delivery_hourly.") for n in ("attempted", "ended", "delivered", "open")),
    ]
)
_LATENCIES: Final = ("queue", "device", "network", "total")
LATENCY_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _HOUR,
        _field("messages", pa.int64(), "Count of messages."),
        *(_field(f"{name}_messages", pa.int64(), "Messages that have the latency.") for name in _LATENCIES),
        *(
            _field(f"{name}_{what}", pa.float64(), "As in latency_hourly.")
            for name in _LATENCIES
            for what in (*("p50_s", "p90_s", "p95_s", "p99_s"), *(f"within_{n}_s" for n in (5, 10, 30, 60)))
        ),
    ]
)
WEBHOOKS_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _field("day", pa.date32(), "Day (UTC) on which they were received."),
        *(
            _field(name, pa.int64(), "Count, as in webhook_quality.")
            for name in ("webhooks", "status_reports", "incoming", "unreadable", "flawed", "duplicates", "unknown")
        ),
        _field("status_id", pa.int32(), "The undocumented status of all that is counted here; null of all others."),
    ]
)
STATUS_CODES_SCHEMA: Final = pa.schema(
    [
        _field("status_id", pa.int32(), "As the gateway sends it."),
        _field("name", pa.string(), "Short English name; the outcome, where a setting gives the meaning."),
        _field("outcome", pa.string(), "Outcome of a message whose deciding report has this status."),
        _field("failure_class", pa.string(), "Why it failed; null unless it failed."),
        _field("is_documented", pa.bool_(), "The gateway documents it; otherwise a setting gives it a meaning."),
    ]
)
PREFIXES_SCHEMA: Final = pa.schema(
    [
        _field("prefix", pa.string(), "First digits of an international number, without +."),
        _field("country", pa.string(), "ISO region of the calling code; the largest, where several share it."),
        _field("carrier", pa.string(), "Carrier that the prefix was given to; null for a calling code."),
    ]
)
DEADLETTERS_SCHEMA: Final = pa.schema(
    [
        *POSITION_FIELDS,
        *_RECEIPT,
        _field("reason", pa.string(), "Why the record could not be read: one of a few words, for counting."),
        _field("detail", pa.string(), "Why, for people. Names fields, never their values."),
        _field("origin_topic", pa.string(), "Topic of the record that could not be read."),
        _field("origin_partition", pa.int32(), "Partition of the record that could not be read."),
        _field("origin_offset", pa.int64(), "Offset of the record that could not be read."),
        _field("body", pa.binary(), "The first 4,096 bytes of the record that could not be read; raw has all of them."),
    ]
)
ALERTS_SCHEMA: Final = pa.schema(
    [
        _field("alert_id", pa.string(), "Identity of the alert, the same each time it fires."),
        _field("kind", pa.string(), "failure_ratio or another that has a runbook."),
        _field("phase", pa.string(), "learning, pending, firing or resolved."),
        _field("scope", pa.string(), "Scope of the alert: channel, device, source or pipeline."),
        _field("source", pa.string(), "Gateway account; * of all."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id; null where the alert is not about one."),
        _field("channel_id", pa.int32(), "SIM card, by the gateway's id; null where the alert is not about one."),
        _field("changed_at", TIME_TYPE, "When the report was received that changed the alert, UTC."),
        _field("since", TIME_TYPE, "Estimated beginning, UTC."),
        _field("fired_at", TIME_TYPE, "When it fired, UTC; null if it has not."),
        _field("resolved_at", TIME_TYPE, "When it was resolved, UTC; null if it is not."),
        _field("count", pa.int64(), "Messages that ended since it began."),
        _field("failures", pa.int64(), "Messages that failed since it began."),
        _field("baseline", pa.float64(), "Usual ratio of failures, 0 to 1."),
        _field("known", pa.int64(), "Messages that the baseline was learnt from."),
        _field("bound", pa.float64(), "Highest ratio of failures that the baseline allows, 0 to 1."),
        _field("errors", pa.map_(pa.string(), pa.int64()), "How many messages failed since, by status id."),
        _field("samples", _TEXTS, "Keys of some messages that failed."),
        _field("share", pa.float64(), "Part of the source's messages that are its own, of the last days, 0 to 1."),
        _field("budget_days", pa.float64(), "Days of one false alarm, on average, that it is set to; 0 without."),
        _field("what", pa.string(), "Finding as text, if it is not the ratio of failures."),
        _field(
            "by_channel",
            pa.list_(
                pa.struct(
                    [
                        ("device_id", pa.int64()),
                        ("channel_id", pa.int32()),
                        ("failures", pa.int64()),
                        ("share", pa.float64()),
                    ]
                )
            ),
            "Latest failures by channel, with its share of the source's messages, of a device's or a source's alert.",
        ),
        _field("resolution", pa.string(), "Why it was resolved: recovered, or new_normal; empty if unknown."),
        *POSITION_FIELDS,
    ]
)
SCHEMAS: Final = {
    "raw": RAW_SCHEMA,
    "messages": MESSAGES_SCHEMA,
    "alerts": ALERTS_SCHEMA,
    "deadletters": DEADLETTERS_SCHEMA,
    "base": BASE_SCHEMA,
    "differences": DIFFERENCES_SCHEMA,
    "base/delivery": DELIVERY_SCHEMA,
    "base/latency": LATENCY_SCHEMA,
    "base/failures": FAILURES_SCHEMA,
    "base/networks": NETWORKS_SCHEMA,
    "webhooks": WEBHOOKS_SCHEMA,
    "quality": QUALITY_SCHEMA,
    "prefixes": PREFIXES_SCHEMA,
    "status_codes": STATUS_CODES_SCHEMA,
}
"""The schema of each dataset, also of those that are not landed: rebuilt from others, or part of the product."""
