-- A row: a source with bad webhooks. Of those of the last hour, at least ten and one in twenty are dead letters or have
-- undocumented statuses.
WITH received AS (
    SELECT
        source,
        date,
        received_at,
        1 AS webhooks,
        if(kind = 'status' AND NOT list_contains(getvariable('statuses'), status_id), status_id::VARCHAR, NULL) AS fault
    FROM raw_webhooks
    UNION ALL
    SELECT source, date, received_at, 0, reason FROM deadletters
),

counted AS (
    SELECT source, sum(webhooks)::BIGINT AS n, count(fault) AS k, histogram(fault) AS errors
    FROM received
    WHERE
        date >= (getvariable('now') - INTERVAL 1 DAY)::DATE
        AND received_at BETWEEN getvariable('now') - INTERVAL 1 HOUR AND getvariable('now')
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
