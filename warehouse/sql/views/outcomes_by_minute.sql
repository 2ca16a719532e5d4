-- A row: the outgoing messages of one source and device that ended with one outcome in one minute of the last 24 hours.
-- Key: source, device_id, minute, outcome.
-- Units: messages is a count. minute is the beginning of the minute of the end.
-- Freshness: as messages, up to now.
SELECT
    source,
    device_id,
    date_trunc('minute', ended_at) AS minute,
    outcome,
    count(*) AS messages
FROM messages
WHERE is_ended AND ended_at > now() - INTERVAL 24 HOUR
GROUP BY source, device_id, minute, outcome
