-- A row: one device of a source.
-- Key: scope. Units: devices_get_on is the share of its recent messages that are open an hour after their first report.
-- Freshness: of the moment 'now'.
SELECT
    source || ' device ' || device_id AS scope,
    avg((NOT is_ended)::INTEGER) AS devices_get_on
FROM latest
WHERE first_seen_at BETWEEN getvariable('recent') AND getvariable('now') - INTERVAL 1 HOUR
    AND device_id IS NOT NULL AND outcome <> 'incoming'
GROUP BY source, device_id
HAVING count(*) >= 20
