-- A row: a source with bad webhooks. Of those of the last hour, at least ten and one in twenty are dead letters or have
-- undocumented statuses.
WITH received AS (
    SELECT source, date, received_at, kind, status_id, NULL AS reason FROM raw_webhooks
    UNION ALL BY NAME
    SELECT source, date, received_at, reason FROM deadletters
),

recent AS (
    SELECT
        source,
        reason IS NULL AS is_webhook,
        if(kind = 'status' AND NOT list_contains(getvariable('statuses'), status_id), status_id::VARCHAR, reason) AS why
    FROM received
    WHERE
        date >= (getvariable('now') - INTERVAL 1 DAY)::DATE
        AND received_at BETWEEN getvariable('now') - INTERVAL 1 HOUR AND getvariable('now')
),

counted AS (
    SELECT source, count(*) FILTER (is_webhook) AS n, count(why) AS k, histogram(why) AS errors
    FROM recent
    GROUP BY source
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
WHERE n > 0 AND k >= 5 AND k >= 0.02 * n
