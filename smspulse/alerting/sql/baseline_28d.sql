-- A row: the attempts of messages of the last 28 days, of one device, or of one source where device_id is 0.
-- slow: those that were open for longer than half an hour. delivered: those with a network latency. p95_s: its p95 in
-- the hour of the day with the highest p95. The p95 is exact: the sketches of approx_quantile, one for each device and
-- hour, take over a gigabyte for 5,000 devices.
WITH hourly AS (
    SELECT
        source,
        device_id,
        if(grouping(device_id) = 1, 'source', 'device') AS scope,
        count(*) AS attempts,
        count(*) FILTER (NOT is_ended OR outcome = 'expired' OR total_s > 1800) AS slow,
        quantile_disc(network_s::FLOAT, 0.95) AS p95_s,
        count(network_s) AS delivered
    FROM attempts
    WHERE
        day >= (getvariable('now') - INTERVAL 28 DAY)::DATE
        AND first_seen_at BETWEEN getvariable('now') - INTERVAL 28 DAY AND getvariable('now') - INTERVAL 2 HOUR
    GROUP BY GROUPING SETS ((source, hour(first_seen_at)), (source, device_id, hour(first_seen_at)))
)

SELECT
    scope,
    source,
    coalesce(device_id, 0) AS device_id,
    sum(attempts)::BIGINT AS attempts,
    sum(slow)::BIGINT AS slow,
    sum(delivered)::BIGINT AS delivered,
    max(p95_s) FILTER (delivered >= 50) AS p95_s
FROM hourly
WHERE scope = 'source' OR device_id IS NOT NULL
GROUP BY ALL
