-- A row: the outgoing messages of one source whose first report was received in one hour (UTC).
-- Key: source, hour.
-- Units: as latency_hourly.
-- Reads: rows, as delivery.sql: all messages of these hours.
SELECT
    source, day, hour, messages,
    COLUMNS('_messages$'),
    COLUMNS('^(queue|device|network|total)$')[1] AS '\1_p50_s',
    COLUMNS('^(queue|device|network|total)$')[2] AS '\1_p90_s',
    COLUMNS('^(queue|device|network|total)$')[3] AS '\1_p95_s',
    COLUMNS('^(queue|device|network|total)$')[4] AS '\1_p99_s',
    COLUMNS('_within_')
FROM (
    SELECT
        source,
        day,
        time_bucket(INTERVAL 1 HOUR, first_seen_at) AS hour,
        count(*) AS messages,
        count(COLUMNS('^(queue|device|network|total)_s$')) AS '\1_messages',
        quantile_cont(COLUMNS('^(queue|device|network|total)_s$'), [0.5, 0.9, 0.95, 0.99]) AS '\1',
        avg((COLUMNS('^(queue|device|network)_s$') <= 5)::INTEGER) AS '\1_within_5_s',
        avg((COLUMNS('^(queue|device|network)_s$') <= 10)::INTEGER) AS '\1_within_10_s',
        avg((COLUMNS('^(queue|device|network)_s$') <= 30)::INTEGER) AS '\1_within_30_s',
        avg((COLUMNS('^(queue|device|network)_s$') <= 60)::INTEGER) AS '\1_within_60_s',
        count(*) FILTER (outcome = 'delivered' AND total_s <= 5) / count(*) AS delivered_within_5_s,
        count(*) FILTER (outcome = 'delivered' AND total_s <= 10) / count(*) AS delivered_within_10_s,
        count(*) FILTER (outcome = 'delivered' AND total_s <= 30) / count(*) AS delivered_within_30_s,
        count(*) FILTER (outcome = 'delivered' AND total_s <= 60) / count(*) AS delivered_within_60_s
    FROM query_table(rows)
    WHERE outcome <> 'incoming'
    GROUP BY source, day, hour
)
