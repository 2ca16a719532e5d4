-- A row: the webhooks of one source that were received on one day (UTC), each once, however often Kafka was given it.
-- Key: source, day.
-- Units: counts. webhooks = status_reports + incoming + unreadable; duplicates are status reports that had been received
--   before on that day, the same to the letter; flawed have a field that could not be read; unknown name an undocumented
--   status. Of the messages first reported on the day: reordered and contradicted ones, and late ones, with a report an
--   hour or more behind the one before it.
-- Freshness: as raw_webhooks and messages.
WITH webhooks AS (
    SELECT
        source,
        -- Whole days since 1970: a cast that minds time zones takes many times as long.
        DATE '1970-01-01' + (epoch_ms(received_at) // 86400000)::INTEGER AS day,
        kind,
        any_value(len(flaws)) > 0 AS is_flawed,
        any_value(status_id) AS status_id,
        any_value(hash(sms_id, status_id, device_id, channel_id, sent_at)) AS report
    FROM raw_webhooks
    WHERE received_at IS NOT NULL
    GROUP BY source, day, kind, coalesce(ingest_id, "partition" || ':' || "offset")
),

received AS (
    SELECT
        source,
        day,
        count(*) AS webhooks,
        count(*) FILTER (kind = 'status') AS status_reports,
        count(*) FILTER (kind = 'incoming') AS incoming,
        count(*) FILTER (kind = 'unreadable') AS unreadable,
        count(*) FILTER (kind <> 'unreadable' AND is_flawed) AS flawed,
        count(*) FILTER (kind = 'status') - count(DISTINCT report) FILTER (kind = 'status') AS duplicates,
        count(*) FILTER (status_id NOT IN (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 100, 101)) AS unknown
    FROM webhooks
    GROUP BY source, day
),

told AS (
    SELECT
        source,
        day,
        count(*) FILTER (list_contains(flags, 'reordered')) AS reordered,
        count(*) FILTER (greatest(queue_s, device_s, network_s) >= 3600) AS late,
        count(*) FILTER (contradicted) AS contradicted
    FROM messages_by_day
    GROUP BY source, day
)

SELECT
    received.*,
    coalesce(reordered, 0) AS reordered,
    coalesce(late, 0) AS late,
    coalesce(contradicted, 0) AS contradicted
FROM received
LEFT JOIN told USING (source, day)
