-- A row: a device or a source with far more open messages than usual. Of the messages that began half an hour to two hours
-- ago, more than twice the usual share and a fifth are open, at three standard errors. Where none began lately, the open
-- messages of the last day keep an alert firing.
WITH begun AS (
    SELECT
        *,
        first_seen_at > getvariable('now') - INTERVAL 2 HOUR AS is_late
    FROM by_scope('recent_attempts')
    WHERE scope <> 'pipeline' AND outcome <> 'incoming' AND first_seen_at <= getvariable('now') - INTERVAL 30 MINUTE
),

counted AS (
    SELECT
        scope,
        source,
        device_id,
        count(*) FILTER (is_late) AS n,
        count(*) FILTER (is_late AND NOT is_ended) AS k,
        count(*) FILTER (NOT is_ended) AS open,
        epoch_ms(coalesce(
            min(first_seen_at) FILTER (is_late AND NOT is_ended), min(first_seen_at) FILTER (NOT is_ended)
        )) AS since,
        coalesce(mode(outcome) FILTER (is_late AND NOT is_ended), mode(outcome) FILTER (NOT is_ended)) AS stage,
        max(message_key, 5) FILTER (is_late AND NOT is_ended) AS samples
    FROM begun
    GROUP BY ALL
)

SELECT
    scope,
    source,
    device_id,
    (coalesce(slow, 0) + 2) / (coalesce(attempts, 0) + 20) AS baseline,
    -- At three standard errors, one evaluation in a thousand exceeds the truth.
    n >= 10 AND wilson_low(k, n, z := 3) > greatest(2 * baseline, 0.2) AS is_bad,
    since,
    n AS count,
    k AS failures,
    coalesce(samples, []) AS samples,
    printf(
        '%d of %d messages that began half an hour to two hours ago are open, most of them %s; %.0f%% is usual',
        k, n, stage, 100 * baseline
    ) AS what
FROM counted
LEFT JOIN baseline_28d USING (scope, source, device_id)
WHERE if(n > 0, k / n > greatest(1.2 * baseline, 0.1), open > 0)
