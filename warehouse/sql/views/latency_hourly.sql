-- A row: the outgoing messages of one source whose first report was received in one hour (UTC).
-- Key: source, hour. day is that of the hour. A query for certain days reads only their files.
-- Units: seconds between reports as they were received: queue from pending to taken by the phone, device from there to
--   sent, network from there to delivered, total from the first report to the end. Percentiles are interpolated
--   linearly. queue_within_5_s and the like are shares, from 0 to 1, of the messages that have the latency;
--   delivered_within_5_s and the like are of all messages of the hour, failed and open ones too. *_messages
--   counts those. Null if no message has it.
-- Freshness: as delivery_hourly.
WITH touched AS MATERIALIZED (
    SELECT time_bucket(INTERVAL 1 HOUR, first_seen_at) AS hour FROM changes
    UNION
    -- Percentiles of base files and recent ones cannot be combined.
    SELECT hour FROM dataset('base/recent/delivery')
),

touched_messages AS (
    SELECT 1 AS sign, * FROM messages_by_day
    -- A condition, because DuckDB would hash all messages for a semi join with a few hours.
    WHERE coalesce(time_bucket(INTERVAL 1 HOUR, first_seen_at) IN (SELECT hour FROM touched), false)
)

FROM rollup('latency')
ANTI JOIN touched USING (hour)
UNION ALL BY NAME
FROM count_latency('touched_messages')
