-- A row: one dataset.
-- Key: dataset.
-- Units: newest_received_at is the time of receipt of its newest webhook, newest_recorded_at Kafka's time of its newest
--   record, both TIMESTAMPTZ. seconds_since counts from the latter to now. Null without rows.
-- Freshness: up to now.
-- It reads the statistics of the files' columns, and no rows.
SELECT
    dataset,
    -- In messages, that of last_seen_at.
    max(
        CASE WHEN path_in_schema IN ('received_at', 'last_seen_at') THEN stats_max_value::TIMESTAMPTZ END
    ) AS newest_received_at,
    max(CASE WHEN path_in_schema = 'recorded_at' THEN stats_max_value::TIMESTAMPTZ END) AS newest_recorded_at,
    coalesce(sum(row_group_num_rows) FILTER (path_in_schema = 'recorded_at'), 0)::BIGINT AS rows,
    epoch(now()) - epoch(newest_recorded_at) AS seconds_since
FROM (SELECT unnest(['raw', 'messages', 'deadletters']) AS dataset) AS datasets
LEFT JOIN parquet_metadata([dataset_pattern('raw'), dataset_pattern('messages'), dataset_pattern('deadletters')])
    ON dataset = string_split(file_name, '/')[-3]
GROUP BY dataset
