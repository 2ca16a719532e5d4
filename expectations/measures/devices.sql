-- A row: one device of a source.
-- Key: scope. Units: device_heard is how many times as long as its longest pause of the last eight days a device has
--   been silent; device_gets_on is the share of its recent messages that are open an hour after their first report.
-- Freshness: of the moment 'now'.
WITH reported AS (
    SELECT source, device_id, date_trunc('minute', last_seen_at) AS minute
    FROM latest
    WHERE last_seen_at BETWEEN getvariable('now') - INTERVAL 8 DAY AND getvariable('now') AND device_id IS NOT NULL
    GROUP BY ALL
),

pauses AS (
    SELECT
        *, epoch(lead(minute) OVER (PARTITION BY source, device_id ORDER BY minute) - minute) AS pause_s
    FROM reported
)

SELECT
    source || ' device ' || device_id AS scope,
    CASE
        WHEN epoch(getvariable('now') - max(minute)) > getvariable('quiet')
            AND min(minute) < getvariable('now') - INTERVAL 7 DAY
            THEN epoch(getvariable('now') - max(minute)) / max(pause_s)
        ELSE 0
    END AS devices_heard
FROM pauses
GROUP BY source, device_id

UNION ALL BY NAME
SELECT
    source || ' device ' || device_id AS scope,
    avg((NOT is_ended)::INTEGER) AS devices_get_on
FROM latest
WHERE first_seen_at BETWEEN getvariable('recent') AND getvariable('now') - INTERVAL 1 HOUR
    AND device_id IS NOT NULL AND outcome <> 'incoming'
GROUP BY source, device_id
HAVING count(*) >= 20
