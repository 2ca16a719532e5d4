-- A row: one device of one source, and its outgoing messages that were first reported within 24 hours.
-- Key: source, device_id. The device is null until a report names one.
-- Units: as delivery_hourly. top_failure is the most frequent reason of failure, which can be `expired`.
-- Freshness: as messages, up to now.
SELECT
    source,
    device_id,
    count(*) AS attempted,
    count(*) FILTER (is_ended) AS ended,
    count(*) FILTER (outcome = 'delivered') AS delivered,
    count(*) FILTER (NOT is_ended) AS open,
    max(last_seen_at) AS last_seen_at,
    mode(CASE WHEN outcome = 'expired' THEN outcome ELSE failure_class END ORDER BY failure_class) AS top_failure
FROM messages
WHERE outcome <> 'incoming' AND first_seen_at > now() - INTERVAL 24 HOUR
GROUP BY source, device_id
