-- A row: one incoming text or image, as it was first accepted.
-- Key: source, sms_id.
-- Units: times are TIMESTAMPTZ. sent_at and phone_received_at are by the phone's clock, received_at is by ingest's.
-- Freshness: as raw_webhooks.
SELECT
    source, sms_id, message_type, device_id, channel_id, device_name,
    address AS sender,
    text, image_url, internal_id, sent_at, phone_received_at, received_at, ingest_id, flaws
FROM raw_webhooks
WHERE kind = 'incoming'
QUALIFY row_number() OVER (PARTITION BY source, sms_id ORDER BY received_at NULLS LAST, "partition", recorded_at, "offset") = 1
