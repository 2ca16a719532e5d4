-- A row: a device or a source whose network is slow. Of the messages delivered within the hour, more than one in twenty, at
-- three standard errors, took over twice the p95 network latency of the last 28 days and at least ten seconds more than it:
-- at least five of twenty.
WITH counted AS (
    SELECT
        scope,
        source,
        device_id,
        p95_s,
        greatest(2 * p95_s, p95_s + 10) AS bound_s,
        count(*) AS n,
        count(*) FILTER (network_s > bound_s) AS k,
        epoch_ms(min(ended_at) FILTER (network_s > bound_s)) AS since,
        quantile_cont(network_s, 0.95) AS now_s,
        arg_max(message_key, network_s, 5) AS samples
    FROM by_scope('recent_attempts')
    INNER JOIN baseline_28d USING (scope, source, device_id)
    WHERE
        delivered >= 500
        AND network_s IS NOT NULL
        AND outcome = 'delivered'
        AND ended_at BETWEEN getvariable('now') - INTERVAL 1 HOUR AND getvariable('now')
    GROUP BY ALL
)

SELECT
    scope,
    source,
    device_id,
    n >= 20 AND k >= 5 AND wilson_low(k, n, z := 3) > 0.05 AS is_bad,
    since,
    n AS count,
    k AS failures,
    0.05::DOUBLE AS baseline,
    samples,
    printf(
        'the p95 from sent to delivered is %.0f s in the last hour; usual is %.0f s, also in the slowest hour of the day',
        now_s, p95_s
    ) AS what
FROM counted
WHERE k > 0.05 * n
