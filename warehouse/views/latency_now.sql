-- A row: one latency of the outgoing messages of one source, or of all, that were first reported within 24 hours.
-- Key: step, source; step is queue, device, network or total, and source is null in the rows of all.
-- Units: seconds between reports as they were received; messages counts those that have the latency.
-- Freshness: as messages, of the moment.
SELECT
    step,
    source,
    count(*) AS messages,
    quantile_cont(seconds, 0.5) AS p50_s,
    quantile_cont(seconds, 0.95) AS p95_s,
    quantile_cont(seconds, 0.99) AS p99_s
FROM (
    SELECT
        source,
        unnest(['queue', 'device', 'network', 'total']) AS step,
        unnest([queue_s, device_s, network_s, total_s]) AS seconds
    FROM messages
    WHERE outcome <> 'incoming' AND first_seen_at > now() - INTERVAL 24 HOUR
)
WHERE seconds IS NOT NULL
GROUP BY GROUPING SETS ((step), (step, source))
