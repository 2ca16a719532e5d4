-- A row: the outgoing messages of one source whose first report was received in one hour (UTC).
-- Key: source, hour.
-- Units: seconds between reports as they were received, percentiles with linear interpolation, null where no message
--   has the latency; messages counts all, *_messages those that have it.
-- Freshness: as messages; an hour goes on changing until its messages have ended.
WITH hourly AS (
    SELECT
        source,
        date_trunc('hour', first_seen_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour,
        count(*) AS messages,
        count(queue_s) AS queue_messages,
        quantile_cont(queue_s, [0.5, 0.9, 0.95, 0.99]) AS queue,
        count(device_s) AS device_messages,
        quantile_cont(device_s, [0.5, 0.9, 0.95, 0.99]) AS device,
        count(network_s) AS network_messages,
        quantile_cont(network_s, [0.5, 0.9, 0.95, 0.99]) AS network,
        count(total_s) AS total_messages,
        quantile_cont(total_s, [0.5, 0.9, 0.95, 0.99]) AS total
    FROM messages
    WHERE outcome <> 'incoming'
    GROUP BY ALL
)

SELECT
    source,
    hour,
    messages,
    queue_messages,
    queue[1] AS queue_p50_s,
    queue[2] AS queue_p90_s,
    queue[3] AS queue_p95_s,
    queue[4] AS queue_p99_s,
    device_messages,
    device[1] AS device_p50_s,
    device[2] AS device_p90_s,
    device[3] AS device_p95_s,
    device[4] AS device_p99_s,
    network_messages,
    network[1] AS network_p50_s,
    network[2] AS network_p90_s,
    network[3] AS network_p95_s,
    network[4] AS network_p99_s,
    total_messages,
    total[1] AS total_p50_s,
    total[2] AS total_p90_s,
    total[3] AS total_p95_s,
    total[4] AS total_p99_s
FROM hourly
