-- A row: a device, a source or the whole pipeline without a report for more than three of the longest pauses of the last 28
-- days. Elapsed time of an hour counts as a part of the longest pause at that hour. So nights and weekends hardly count
-- where they were silent before. A silence lasts until the next report.
WITH reported AS (
    SELECT scope, source, device_id, least(max(last_seen_at), getvariable('now')) AS newest_at
    FROM by_scope('recent_attempts')
    GROUP BY ALL
),

quiet AS (
    SELECT DISTINCT scope, source, device_id, greatest(last_at, newest_at) AS last_at
    FROM activity_profile
    LEFT JOIN reported USING (scope, source, device_id)
),

passed AS (
    SELECT
        *,
        unnest(generate_series(date_trunc('hour', last_at), getvariable('now'), INTERVAL 1 HOUR)) AS begins_at,
        epoch(least(begins_at + INTERVAL 1 HOUR, getvariable('now'))) - epoch(greatest(begins_at, last_at)) AS passed_s,
        isodow(begins_at) > 5 AS is_weekend,
        hour(begins_at) AS hour
    FROM quiet
    WHERE getvariable('now') > last_at + INTERVAL 15 MINUTE
),

counted AS (
    SELECT
        scope,
        source,
        device_id,
        passed.last_at,
        sum(passed_s / coalesce(longest_s, 300)) FILTER (days >= 4) AS pauses
    FROM passed
    INNER JOIN activity_profile USING (scope, source, device_id, is_weekend, hour)
    GROUP BY ALL
)

SELECT
    scope,
    source,
    device_id,
    coalesce(pauses > 3, false) AS is_bad,
    epoch_ms(last_at) AS since,
    printf(
        'nothing has come since %s UTC, which is %.1f times the longest pause of 28 days at such hours',
        strftime(last_at, '%Y-%m-%d %H:%M'), pauses
    ) AS what
FROM counted
