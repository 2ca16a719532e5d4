-- A row: all that has landed: counts, receipt of the first webhook, and of the last one that the stream has reached.
-- Key: none. Units: counts of rows. Freshness: of the moment.
WITH landed AS (
    SELECT "partition", count(*) AS webhooks, min(received_at) AS first, max(received_at) AS until
    FROM raw_files
    GROUP BY ALL
)

SELECT
    coalesce(sum(webhooks), 0)::BIGINT AS webhooks, (SELECT count(*) FROM version_files) AS versions, min(first) AS first,
    -- Of a partition whose webhooks land later than the stream's versions of them, no more is known.
    coalesce(min(landed.until) FILTER (landed.until < reached.until), max(landed.until)) AS logged
FROM landed
LEFT JOIN reached USING ("partition")
