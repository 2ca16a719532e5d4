-- A row: the outgoing messages of one source whose first report was received in one hour (UTC).
-- Key: source, hour. day is that of the hour. A query for certain days reads only their files.
-- Units: seconds between reports as they were received: queue from pending to taken by the phone, device from there to
--   sent, network from there to delivered, total from the first report to the end. Percentiles are interpolated
--   linearly.
--   *_within_5_s and the like are shares, from 0 to 1, of the messages that have the latency. *_messages counts those.
--   Null if no message has it.
-- Freshness: as delivery_hourly.
WITH touched AS MATERIALIZED (
    SELECT DISTINCT time_bucket(INTERVAL 1 HOUR, first_seen_at) AS hour
    FROM changes
)

FROM {latency by hour}
