-- A row: the measures of the delivery views for one source, or one of its recent hours.
-- Key: none. Units: rates are from 0 to 1; delivery_adds_up counts the messages and attempts by which the views differ,
--   delivery_from_raw those by which an hour and the log do.
-- Freshness: as messages.
WITH devices AS MATERIALIZED (
    SELECT coalesce(source, '(no source)') AS scope, * FROM delivery_by_device
),

shown_sums AS (
    SELECT 'attempts' AS what, scope, sum(COLUMNS('^(attempted|ended|delivered|open)$')) AS '\0' FROM devices GROUP BY scope
    UNION ALL
    SELECT 'messages', coalesce(source, '(no source)'), sum(COLUMNS('^(attempted|ended|delivered|open)$')) FROM delivery_daily
    GROUP BY source
),

found_sums AS (
    SELECT
        what, coalesce(source, '(no source)') AS scope,
        sum(attempted) AS attempted, sum(ended) AS ended, sum(delivered) AS delivered
    FROM (
        SELECT 'messages', source, 1, (is_ended IS TRUE)::INTEGER, (outcome = 'delivered')::INTEGER
        FROM messages
        WHERE outcome <> 'incoming'
        UNION ALL
        SELECT 'attempts', source, 1, (is_ended IS TRUE)::INTEGER, (outcome = 'delivered')::INTEGER FROM attempts
        UNION ALL
        -- Of days of which retention dropped the messages, only the counts are left.
        SELECT 'messages', source, attempted, ended, delivered FROM dataset('base/delivery')
        WHERE date NOT IN (SELECT base.date FROM dataset('base') AS base)
        UNION ALL
        SELECT 'attempts', source, attempted, ended, delivered FROM dataset('base/attempts')
        WHERE date NOT IN (SELECT base.date FROM dataset('base') AS base)
    ) AS counts(what, source, attempted, ended, delivered)
    GROUP BY ALL
),

added_up AS (
    SELECT
        scope,
        abs(coalesce(shown_sums.attempted, 0) - coalesce(found_sums.attempted, 0))
        + abs(coalesce(shown_sums.ended, 0) - coalesce(found_sums.ended, 0))
        + abs(coalesce(shown_sums.delivered, 0) - coalesce(found_sums.delivered, 0))
        + abs(shown_sums.attempted - shown_sums.ended - shown_sums.open) AS off
    FROM shown_sums
    FULL JOIN found_sums USING (what, scope)
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
SELECT scope, sum(off) AS delivery_adds_up
FROM added_up
-- Counts of a part differ from those of all messages.
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
