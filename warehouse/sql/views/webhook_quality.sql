-- A row: the webhooks of one source that were received on one day (UTC), each once, however often it was written to
--   Kafka.
-- Key: source, day.
-- Units: counts. webhooks = status_reports + incoming + unreadable. duplicates are status reports that agree in
--   message, status, phone, channel and senttime with one that was received and written to Kafka before on that day.
--   flawed ones have a field that could not be read. unknown ones have a status that is neither documented nor given a meaning by SMSPULSE_STREAM_STATUS_MEANINGS. Of the
--   messages first reported on the day: reordered and contradicted ones, and late ones, with a report an hour or more
--   after the one before it. These are null if the day has no messages.
-- Freshness: as raw_webhooks and messages. Days that compaction has counted are as of then.
WITH uncounted AS (
    FROM raw_webhooks WHERE date >= counted_until()
),

received AS (
    SELECT
        source,
        day,
        sum(COLUMNS('^(webhooks|status_reports|incoming|unreadable|flawed|duplicates)$'))::BIGINT AS '\0',
        coalesce(
            sum("unknown") FILTER (
                status_id IS NULL OR status_id NOT IN (SELECT codes.status_id FROM dataset('status_codes') AS codes)
            ),
            0
        )::BIGINT AS "unknown"
    FROM (
        FROM dataset('webhooks') WHERE date < counted_until()
        UNION ALL BY NAME
        FROM count_webhooks('uncounted')
    )
    GROUP BY source, day
),

reported AS (
    SELECT
        source,
        day,
        count(*) FILTER (list_contains(flags, 'reordered')) AS reordered,
        count(*) FILTER (greatest(queue_s, device_s, network_s) >= 3600) AS late,
        count(*) FILTER (contradicted) AS contradicted
    FROM messages_by_day
    GROUP BY source, day
)

SELECT received.*, reordered, late, contradicted
FROM received
LEFT JOIN reported USING (source, day)
