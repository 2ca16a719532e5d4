-- A row: the reports of one message in a single pass, and whether it is simple: of documented statuses, one end at most,
--   and each status of one device, channel and time of sending, if any. Most messages are, and need no windows.
-- Key: source, sms_id.
-- Units: times are TIMESTAMPTZ, null where the status was not reported, `_until` those of last reports. steps has a bit
--   for each rank reported, 5 for none, and six further on if the report had no sent_at.
-- Reads: log, as lifecycle_multi_attempt.sql reads reports, and statuses.
SELECT
    source,
    sms_id,
    min(recipient) AS recipient,
    first(device_id) AS device_id,
    first(channel_id) AS channel_id,
    min(sent_at) AS said_at,
    min(CASE WHEN rank = 0 THEN reported_at END) AS pending_at,
    max(CASE WHEN rank = 0 THEN reported_at END) AS pending_until,
    min(CASE WHEN rank = 1 THEN reported_at END) AS queued_at,
    max(CASE WHEN rank = 1 THEN reported_at END) AS queued_until,
    min(CASE WHEN rank = 2 THEN reported_at END) AS accepted_at,
    max(CASE WHEN rank = 2 THEN reported_at END) AS accepted_until,
    min(CASE WHEN rank = 3 THEN reported_at END) AS handed_at,
    max(CASE WHEN rank = 3 THEN reported_at END) AS handed_until,
    min(CASE WHEN rank = 4 THEN reported_at END) AS ended_at,
    max(CASE WHEN rank = 4 THEN reported_at END) AS ended_until,
    min(CASE WHEN rank = 4 THEN log.status_id END) AS winner,
    count(*) AS reports,
    bit_or(1 << (coalesce(rank, 5) + CASE WHEN sent_at IS NULL THEN 6 ELSE 0 END)) AS steps,
    steps & ((steps >> 6) | (1 << 5) | (1 << 11)) = 0
    AND coalesce(winner = max(CASE WHEN rank = 4 THEN log.status_id END), true)
    AND coalesce(said_at = max(sent_at), true)
    AND min(hash(device_id, channel_id)) = max(hash(device_id, channel_id)) AS is_simple
FROM log
LEFT JOIN statuses ON statuses.status_id = log.status_id
GROUP BY source, sms_id
