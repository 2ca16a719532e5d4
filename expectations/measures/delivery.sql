-- A row: the measures of the delivery views for one source, or one of its recent hours.
-- Key: none. Units: rates are from 0 to 1; delivery_adds_up counts the messages by which view and messages differ,
--   delivery_from_raw those by which an hour and the log do.
-- Freshness: as messages.
WITH devices AS MATERIALIZED (
    SELECT coalesce(source, '(no source)') AS scope, * FROM delivery_by_device
),

counted AS (
    SELECT
        coalesce(source, '(no source)') AS scope,
        sum(attempted) AS attempted, sum(ended) AS ended, sum(delivered) AS delivered
    FROM (
        SELECT source, 1, (is_ended IS TRUE)::INTEGER, (outcome = 'delivered')::INTEGER
        FROM messages
        WHERE outcome <> 'incoming'
        UNION ALL
        -- Of days of which retention dropped the messages, only the counts are left.
        SELECT source, attempted, ended, delivered FROM dataset('base/delivery')
        WHERE date NOT IN (SELECT base.date FROM dataset('base') AS base)
    ) AS counts(source, attempted, ended, delivered)
    GROUP BY scope
),

hours AS (
    SELECT source, hour, [sum(delivered), sum(ended - expired), sum(attempted)] AS shown_counts
    FROM delivery_hourly
    WHERE day >= getvariable('counted')::DATE AND hour >= getvariable('counted')
    GROUP BY ALL
),

logged AS (
    SELECT
        source, date_trunc('hour', first_seen_at) AS hour, count(*) FILTER (is_moving) AS moving,
        [count(*) FILTER (outcome = 'delivered'), count(winner), count(*)] AS found
    FROM recomputed
    LEFT JOIN statuses ON status_id = winner
    WHERE winner IS NOT NULL OR furthest IS NOT NULL OR NOT incoming
    GROUP BY ALL
),

-- Messages of which the stream may have processed webhooks that were not in the log when it was read.
ahead AS (
    SELECT source, date_trunc('hour', first_seen_at) AS hour, count(*) AS moving
    FROM messages
    WHERE last_seen_at >= getvariable('logged') - getvariable('waiting')
    GROUP BY ALL
),

compared AS (
    SELECT
        source || ' ' || strftime(hour, '%Y-%m-%d %H:00') AS scope, shown_counts, found,
        list_max([
            abs(coalesce(pair[1], 0) - coalesce(pair[2], 0)) FOR pair IN list_zip(shown_counts, found)
        ]) - coalesce(logged.moving, 0) - coalesce(ahead.moving, 0) AS off
    FROM hours
    FULL JOIN logged USING (source, hour)
    LEFT JOIN ahead USING (source, hour)
)

SELECT
    scope,
    unnest([
        min(least(delivered_per_attempted, delivered_per_ended, open_share)),
        max(greatest(delivered_per_attempted, delivered_per_ended, open_share))
    ]) AS rates_in_range
FROM devices
GROUP BY scope

UNION ALL BY NAME
SELECT
    scope,
    abs(sum(devices.attempted) - any_value(counted.attempted))
        + abs(sum(devices.ended) - any_value(counted.ended))
        + abs(sum(devices.delivered) - any_value(counted.delivered))
        + abs(sum(devices.attempted) - sum(devices.ended) - sum(devices.open)) AS delivery_adds_up
FROM devices
FULL JOIN counted USING (scope)
-- Counts by device differ from those of all messages.
WHERE NOT getvariable('is_part')
GROUP BY scope

UNION ALL BY NAME
SELECT
    scope,
    greatest(off, 0) AS delivery_from_raw,
    CASE WHEN off > 0 THEN [format(
        '{}: {} delivered, {} ended of {}; in raw {}, {} of {}',
            scope, shown_counts[1], shown_counts[2], shown_counts[3], found[1], found[2], found[3]
    )] END AS delivery_from_raw_rows
FROM compared
