-- A row: one status report as it was accepted. A report delivered twice is two rows.
-- Key: incarnation, partition, "offset".
-- Units: times are TIMESTAMPTZ. received_at is when the report was accepted: the payload has no time of the status.
-- Freshness: as raw_webhooks.
SELECT
    source,
    sms_id,
    source || ':' || sms_id AS message_key,
    status_id, status_message, device_id, channel_id,
    address AS recipient,
    sent_at, received_at, ingest_id, flaws, "partition", "offset", incarnation, recorded_at, date
FROM raw_webhooks
WHERE kind = 'status'
