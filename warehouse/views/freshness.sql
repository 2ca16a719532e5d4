-- A row: one dataset.
-- Key: dataset.
-- Units: newest_received_at is when the newest webhook in it was accepted, newest_recorded_at Kafka's time of its newest
--   record, both TIMESTAMPTZ; seconds_since counts from the latter to now. Null without rows.
-- Freshness: of the moment.
WITH newest AS (
    SELECT
        'raw' AS dataset,
        max(received_at) AS newest_received_at,
        max(recorded_at) AS newest_recorded_at,
        count(*) AS rows
    FROM {raw}
    UNION ALL
    SELECT 'messages', max(last_seen_at), max(recorded_at), count(*)
    FROM {messages}
    UNION ALL
    SELECT 'deadletters', max(received_at), max(recorded_at), count(*)
    FROM {deadletters}
)

SELECT
    dataset,
    newest_received_at,
    newest_recorded_at,
    rows,
    epoch(now()) - epoch(newest_recorded_at) AS seconds_since
FROM newest
