-- A row: one hour of the day (UTC), on working days or at weekends, of one device, one source, or all.
-- longest_s: the longest pause of the last 28 days that touched this hour or a neighbour of it, null if
-- none was longer than five minutes. days: how many such days had any report. last_at: time of the last report.
WITH seen AS (
    SELECT
        source,
        device_id,
        time_bucket(INTERVAL 5 MINUTE, first_seen_at) AS slot,
        max(least(last_seen_at, getvariable('now'))) AS last_at
    FROM (
        SELECT day, source, device_id, first_seen_at, last_seen_at FROM attempts
        UNION ALL
        SELECT day, source, device_id, first_seen_at, last_seen_at FROM messages_by_day
        WHERE outcome = 'incoming'
    )
    WHERE day >= (getvariable('now') - INTERVAL 28 DAY)::DATE AND first_seen_at <= getvariable('now')
    GROUP BY ALL
),

units AS (
    SELECT scope, source, device_id, slot, max(last_at) AS last_at FROM by_scope('seen') GROUP BY ALL
),

paused AS (
    SELECT *, lag(slot) OVER (PARTITION BY scope, source, device_id ORDER BY slot) AS before FROM units
),

touched AS (
    SELECT
        scope,
        source,
        device_id,
        epoch(slot) - epoch(before) AS pause_s,
        unnest(generate_series(
            date_trunc('hour', before) - INTERVAL 1 HOUR, date_trunc('hour', slot) + INTERVAL 1 HOUR, INTERVAL 1 HOUR
        )) AS touched_at
    FROM paused
    WHERE slot > before + INTERVAL 5 MINUTE
),

longest AS (
    SELECT
        scope, source, device_id, isodow(touched_at) > 5 AS is_weekend, hour(touched_at) AS hour, max(pause_s) AS longest_s
    FROM touched
    GROUP BY ALL
),

whole AS (
    SELECT
        scope,
        source,
        device_id,
        isodow(slot) > 5 AS is_weekend,
        count(DISTINCT slot::DATE) AS days,
        max(max(last_at)) OVER (PARTITION BY scope, source, device_id) AS last_at
    FROM units
    GROUP BY scope, source, device_id, is_weekend
)

SELECT whole.*, hour, longest_s
FROM whole
CROSS JOIN range(24) AS hours (hour)
LEFT JOIN longest USING (scope, source, device_id, is_weekend, hour)
