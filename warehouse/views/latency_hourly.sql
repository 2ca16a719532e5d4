-- A row: the outgoing messages of one source whose first report was received in one hour (UTC).
-- Key: source, hour. day is that of the hour: asked for days, it reads their files alone.
-- Units: seconds between reports as they were received: queue from pending to taken by the phone, device from there to
--   sent, network from there to delivered, total from the first report to the end. Percentiles have linear interpolation;
--   *_within_5_s and the like are shares, from 0 to 1, of the messages that have the latency, and *_messages counts those.
--   Null where no message has it.
-- Freshness: as delivery_hourly.
WITH hourly AS (
    SELECT
        source,
        day,
        date_trunc('hour', first_seen_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour,
        count(*) AS messages,
        count(COLUMNS('^(queue|device|network|total)_s$')) AS '\1_messages',
        quantile_cont(COLUMNS('^(queue|device|network|total)_s$'), [0.5, 0.9, 0.95, 0.99]) AS '\1',
        avg((COLUMNS('^(queue|device|network|total)_s$') <= 5)::INTEGER) AS '\1_within_5_s',
        avg((COLUMNS('^(queue|device|network|total)_s$') <= 10)::INTEGER) AS '\1_within_10_s',
        avg((COLUMNS('^(queue|device|network|total)_s$') <= 30)::INTEGER) AS '\1_within_30_s',
        avg((COLUMNS('^(queue|device|network|total)_s$') <= 60)::INTEGER) AS '\1_within_60_s'
    FROM messages_by_day
    WHERE outcome <> 'incoming'
    GROUP BY source, day, hour
)

SELECT
    source,
    day,
    hour,
    messages,
    COLUMNS('_messages$'),
    COLUMNS('^(queue|device|network|total)$')[1] AS '\1_p50_s',
    COLUMNS('^(queue|device|network|total)$')[2] AS '\1_p90_s',
    COLUMNS('^(queue|device|network|total)$')[3] AS '\1_p95_s',
    COLUMNS('^(queue|device|network|total)$')[4] AS '\1_p99_s',
    COLUMNS('_within_')
FROM hourly
UNION ALL BY NAME
SELECT date AS day, * EXCLUDE (date) FROM {base/latency}
