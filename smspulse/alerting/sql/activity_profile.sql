-- A row: one hour of the day (UTC), on working days or at weekends, of one device, one source, or all.
-- longest_s: the longest pause of the last 28 days that touched this hour or a neighbour of it, null if none was longer
-- than five minutes. days: how many such days had any report. last_at: time of the last report.
WITH seen AS (
    SELECT
        source,
        device_id,
        time_bucket(INTERVAL 5 MINUTE, first_seen_at) AS slot,
        max(least(last_seen_at, getvariable('now'))) AS last_at
    FROM messages_by_day
    WHERE day >= (getvariable('now') - INTERVAL 28 DAY)::DATE AND first_seen_at <= getvariable('now')
    GROUP BY ALL
),

units AS (
    SELECT 'device' AS scope, * FROM seen WHERE device_id IS NOT NULL
    UNION ALL
    SELECT 'source', source, NULL, slot, max(last_at) FROM seen GROUP BY source, slot
    UNION ALL
    SELECT 'pipeline', '*', NULL, slot, max(last_at) FROM seen GROUP BY slot
),

paused AS (
    SELECT scope, source, device_id, slot, lag(slot) OVER (PARTITION BY scope, source, device_id ORDER BY slot) AS before
    FROM units
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
        max(last_at) AS last_at,
        [
            {'is_weekend': false, 'days': count(DISTINCT slot::DATE) FILTER (isodow(slot) <= 5)},
            {'is_weekend': true, 'days': count(DISTINCT slot::DATE) FILTER (isodow(slot) > 5)}
        ] AS kinds
    FROM units
    GROUP BY ALL
)

SELECT
    whole.scope, whole.source, whole.device_id, kind.is_weekend, hours.hour, longest_s, kind.days, whole.last_at
FROM whole
CROSS JOIN unnest(whole.kinds) AS kinds (kind)
CROSS JOIN range(24) AS hours (hour)
LEFT JOIN longest
    ON longest.scope = whole.scope
    AND longest.source = whole.source
    AND longest.device_id IS NOT DISTINCT FROM whole.device_id
    AND longest.is_weekend = kind.is_weekend
    AND longest.hour = hours.hour
