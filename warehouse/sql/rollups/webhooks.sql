-- A row: the webhooks of one source that were received on one day (UTC), and that Kafka took on one day, mostly the same;
--   those of an undocumented status in a row of their own, for a setting can give it a meaning later.
-- Key: source, day, date, status_id.
-- Units: as webhook_quality; unknown counts undocumented statuses, whatever a setting says of them.
-- Reads: rows, as delivery.sql: all webhooks that Kafka took on these days.
SELECT
    source, day, date,
    count(*) AS webhooks,
    count(*) FILTER (kind = 'status') AS status_reports,
    count(*) FILTER (kind = 'incoming') AS incoming,
    count(*) FILTER (kind = 'unreadable') AS unreadable,
    count(*) FILTER (kind <> 'unreadable' AND is_flawed) AS flawed,
    count(*) FILTER (kind = 'status') - count(DISTINCT report) FILTER (kind = 'status') AS duplicates,
    count(undocumented_id) AS unknown,
    undocumented_id AS status_id
FROM (
    SELECT
        source,
        -- Whole days since 1970: a cast that minds time zones takes many times as long.
        DATE '1970-01-01' + (epoch_ms(received_at) // 86400000)::INTEGER AS day,
        date,
        kind,
        any_value(len(flaws)) > 0 AS is_flawed,
        any_value(CASE WHEN NOT is_documented(status_id) THEN status_id END) AS undocumented_id,
        any_value(hash(sms_id, status_id, device_id, channel_id, sent_at)) AS report
    FROM query_table(rows)
    WHERE received_at IS NOT NULL
    GROUP BY source, day, date, kind, coalesce(ingest_id, concat_ws(':', incarnation, "partition", "offset"))
)
GROUP BY source, day, date, undocumented_id
