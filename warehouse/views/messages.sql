-- A row: one message with status reports, in its newest version: the largest version, and among equals the last written.
-- Key: source, sms_id (and so message_key).
-- Units: times are TIMESTAMPTZ, *_s are seconds between reports as they were received, or null. recipient is a number.
-- Freshness: what the stream made of the webhooks and was landed, 10 s behind receipt at most by default.
-- A record by which the stream forgets a message does not end the message here.
SELECT
    source,
    sms_id,
    message_key,
    device_id,
    channel_id,
    recipient,
    outcome,
    failure_class,
    last_status_id,
    is_ended,
    first_seen_at,
    ended_at,
    delivered_at,
    attempts,
    contradicted,
    flags,
    queue_s,
    device_s,
    network_s,
    total_s,
    version,
    last_seen_at,
    observations,
    recorded_at
FROM {messages}
WHERE NOT is_forgotten AND version IS NOT NULL
-- All three are the key: a filter on any of them reaches the files.
QUALIFY row_number() OVER (PARTITION BY source, sms_id, message_key ORDER BY version DESC, "offset" DESC) = 1
