-- A row: one dataset.
-- Key: dataset.
-- Units: newest_received_at is the time of receipt of its newest webhook, newest_recorded_at Kafka's time of its newest
--   record, both TIMESTAMPTZ. seconds_since counts from the latter to now. Null without rows.
-- Freshness: up to now.
-- It reads the statistics of the files' columns, and no rows.
WITH columns AS (
    SELECT 'raw' AS dataset, 'received_at' AS received, path_in_schema, stats_max_value, row_group_num_rows
    FROM parquet_metadata(dataset_pattern('raw'))
    UNION ALL
    SELECT 'messages', 'last_seen_at', path_in_schema, stats_max_value, row_group_num_rows
    FROM parquet_metadata(dataset_pattern('messages'))
    UNION ALL
    SELECT 'deadletters', 'received_at', path_in_schema, stats_max_value, row_group_num_rows
    FROM parquet_metadata(dataset_pattern('deadletters'))
),

newest AS (
    SELECT
        datasets.dataset,
        max(CASE WHEN path_in_schema = received THEN stats_max_value::TIMESTAMPTZ END) AS newest_received_at,
        max(CASE WHEN path_in_schema = 'recorded_at' THEN stats_max_value::TIMESTAMPTZ END) AS newest_recorded_at,
        coalesce(sum(row_group_num_rows) FILTER (path_in_schema = 'recorded_at'), 0)::BIGINT AS rows
    FROM (SELECT unnest(['raw', 'messages', 'deadletters']) AS dataset) AS datasets
    LEFT JOIN columns ON columns.dataset = datasets.dataset
    GROUP BY datasets.dataset
)

SELECT
    dataset, newest_received_at, newest_recorded_at, rows,
    epoch(now()) - epoch(newest_recorded_at) AS seconds_since
FROM newest
