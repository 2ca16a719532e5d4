-- A row: one message in the newest version that had been written at a given time. It is a table macro: FROM
--   messages_as_of('2026-11-20 12:00'), in UTC unless the time names a zone.
-- Key: source, sms_id (and so message_key).
-- Units: as messages, and so are the columns.
-- Freshness: of the given time. Records of the stream never change, so the result does not change either.
SELECT
    source, sms_id, message_key, device_id, channel_id, recipient, outcome, failure_class, last_status_id, is_ended,
    first_seen_at, ended_at, delivered_at, attempts, contradicted, flags, queue_s, device_s, network_s, total_s,
    version, last_seen_at, observations, attempt_details, recorded_at
FROM dataset('messages')
WHERE NOT is_forgotten AND version IS NOT NULL
    AND recorded_at <= CASE
        WHEN regexp_matches(moment::VARCHAR, ':.*[-+A-Za-z]') THEN moment::TIMESTAMPTZ
        ELSE moment::TIMESTAMP AT TIME ZONE 'UTC'
    END
QUALIFY row_number() OVER (PARTITION BY source, sms_id, message_key ORDER BY version DESC, log_position(incarnation, "offset") DESC) = 1
