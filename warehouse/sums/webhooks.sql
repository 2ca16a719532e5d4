-- A row: the webhooks of one source that were received on one day (UTC), and that Kafka took on one day, mostly the same.
-- Key: source, day, date.
-- Units: as webhook_quality.
-- Reads: rows, all webhooks that Kafka took on these days.
SELECT
    source,
    day,
    date,
    count(*) AS webhooks,
    count(*) FILTER (kind = 'status') AS status_reports,
    count(*) FILTER (kind = 'incoming') AS incoming,
    count(*) FILTER (kind = 'unreadable') AS unreadable,
    count(*) FILTER (kind <> 'unreadable' AND is_flawed) AS flawed,
    count(*) FILTER (kind = 'status') - count(DISTINCT report) FILTER (kind = 'status') AS duplicates,
    count(*) FILTER (status_id NOT IN (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 100, 101)) AS unknown
FROM (
    SELECT
        source,
        -- Whole days since 1970: a cast that minds time zones takes many times as long.
        DATE '1970-01-01' + (epoch_ms(received_at) // 86400000)::INTEGER AS day,
        date,
        kind,
        any_value(len(flaws)) > 0 AS is_flawed,
        any_value(status_id) AS status_id,
        any_value(hash(sms_id, status_id, device_id, channel_id, sent_at)) AS report
    FROM {rows}
    WHERE received_at IS NOT NULL
    GROUP BY source, day, date, kind, coalesce(ingest_id, concat_ws(':', incarnation, "partition", "offset"))
)
GROUP BY source, day, date
