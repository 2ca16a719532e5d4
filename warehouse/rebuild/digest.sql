-- A row: the reports of one message in a single pass, and whether it is plain: each report is another documented status,
--   one end at most, all from one place, in the documented order. Most messages are, and need no windows.
-- Key: source, sms_id.
-- Units: times are TIMESTAMPTZ, null where the status was not reported.
-- Reads: log, as told.sql reads reports, and statuses.
SELECT
    source,
    sms_id,
    count(*) AS observed,
    min(told_at) AS first_seen_at,
    max(told_at) AS last_seen_at,
    min(recipient) AS recipient,
    first(device_id) AS device_id,
    first(channel_id) AS channel_id,
    first(sent_at) AS said_at,
    min(told_at) FILTER (log.status_id = 1) AS pending_at,
    min(told_at) FILTER (log.status_id = 3) AS queued_at,
    min(told_at) FILTER (log.status_id = 2) AS accepted_at,
    min(told_at) FILTER (log.status_id = 6) AS handed_at,
    min(told_at) FILTER (is_end) AS ended_at,
    min(log.status_id) FILTER (is_end) AS winner,
    bit_count(bit_or(CASE WHEN is_end THEN 16 WHEN rank IS NOT NULL THEN 1 << rank ELSE 0 END)) = observed
    AND min(hash(device_id, channel_id, log.sent_at)) = max(hash(device_id, channel_id, log.sent_at))
    AND coalesce(pending_at <= least(queued_at, accepted_at, handed_at, ended_at), true)
    AND coalesce(queued_at <= least(accepted_at, handed_at, ended_at), true)
    AND coalesce(accepted_at <= least(handed_at, ended_at), true)
    AND coalesce(handed_at <= ended_at, true) AS is_plain
FROM log
LEFT JOIN statuses ON statuses.status_id = log.status_id
GROUP BY source, sms_id
