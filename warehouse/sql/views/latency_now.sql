-- A row: one latency of the outgoing messages of one source, or of all, that were first reported within 24 hours.
-- Key: step, source. step is queue, device, network or total. source is null in the rows of all sources.
-- Units: seconds between reports as they were received. messages counts those that have the latency.
-- Freshness: as messages, up to now.
WITH of_each AS (
    SELECT
        source,
        count(COLUMNS('^(queue|device|network|total)_s$')) AS '\1_messages',
        quantile_cont(COLUMNS('^(queue|device|network|total)_s$'), [0.5, 0.95, 0.99]) AS '\1'
    FROM messages
    WHERE outcome <> 'incoming' AND first_seen_at > now() - INTERVAL 24 HOUR
    GROUP BY GROUPING SETS ((), (source))
),

by_step AS (
    SELECT
        source,
        unnest(['queue', 'device', 'network', 'total']) AS step,
        unnest([queue_messages, device_messages, network_messages, total_messages]) AS messages,
        unnest([queue, device, network, total]) AS quantiles
    FROM of_each
)

SELECT
    step, source, messages,
    quantiles[1] AS p50_s,
    quantiles[2] AS p95_s,
    quantiles[3] AS p99_s
FROM by_step
WHERE messages > 0
