-- A row: a source with bad webhooks. Of those of the last hour, at least ten and one in twenty are dead letters or have
-- undocumented statuses.
WITH recent AS (
    SELECT source, kind, status_id
    FROM raw_webhooks
    WHERE
        date >= (getvariable('now') - INTERVAL 1 DAY)::DATE
        AND received_at BETWEEN getvariable('now') - INTERVAL 1 HOUR AND getvariable('now')
),

wrong AS (
    SELECT source, status_id::VARCHAR AS why
    FROM recent
    WHERE kind = 'status' AND NOT list_contains(getvariable('statuses'), status_id)
    UNION ALL
    SELECT source, reason
    FROM deadletters
    WHERE
        date >= (getvariable('now') - INTERVAL 1 DAY)::DATE
        AND received_at BETWEEN getvariable('now') - INTERVAL 1 HOUR AND getvariable('now')
),

counted AS (
    SELECT source, count(*) AS k, histogram(why) AS errors FROM wrong GROUP BY source
)

SELECT
    'source' AS scope,
    source,
    NULL AS device_id,
    k >= 10 AND k >= 0.05 * n AS is_bad,
    epoch_ms(getvariable('now') - INTERVAL 1 HOUR) AS since,
    n AS count,
    k AS failures,
    errors,
    printf('%d of %d webhooks of the last hour are of undocumented statuses or cannot be read', k, n) AS what
FROM counted
INNER JOIN (SELECT source, count(*) AS n FROM recent GROUP BY source) USING (source)
WHERE k >= 5 AND k >= 0.02 * n
