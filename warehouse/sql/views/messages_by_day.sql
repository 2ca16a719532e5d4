-- A row: as messages, with the day of its first report (UTC). A query for certain days reads only their files.
-- Key: source, sms_id (and so message_key).
-- Units and freshness: as messages.
-- Outer joins, not anti joins: a filter on columns of both sides reaches the files of both.
WITH live AS {once} (FROM live_messages),

old AS (
    SELECT live.message_key, live.source, live.sms_id
    FROM dataset('base') AS base
    INNER JOIN live
        ON is_same_message(live.source, base.source, live.sms_id, base.sms_id, live.message_key, base.message_key)
        AND live.weight < base.version
)

SELECT
    day,
    source, sms_id, message_key, device_id, channel_id, recipient, outcome, failure_class, last_status_id, is_ended,
    first_seen_at, ended_at, delivered_at, attempts, contradicted, flags, queue_s, device_s, network_s, total_s,
    version, last_seen_at, observations, attempt_details, recorded_at
FROM (
    SELECT base.*, base.date AS day FROM dataset('base') AS base
    LEFT JOIN live
        ON is_same_message(live.source, base.source, live.sms_id, base.sms_id, live.message_key, base.message_key)
    WHERE live.sms_id IS NULL OR live.weight < base.version
    UNION ALL BY NAME
    SELECT live.*, (live.first_seen_at AT TIME ZONE 'UTC')::DATE AS day FROM live
    LEFT JOIN old
        ON is_same_message(live.source, old.source, live.sms_id, old.sms_id, live.message_key, old.message_key)
    WHERE old.sms_id IS NULL
)
