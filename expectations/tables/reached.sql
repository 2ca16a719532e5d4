-- A row: one partition of sms.raw, and until when the stream has processed it, by the receipt of its webhooks.
-- Key: partition. Units: none. settled_until counts only results that the stream wrote so long ago that the other results
--   of the same transaction have landed, too. began_at is the time of its first result.
-- Freshness: of the snapshot.
SELECT
    "partition",
    max(reached_at) AS until,
    max(reached_at) FILTER (written_at < getvariable('now') - getvariable('waiting')) AS settled_until,
    min(written_at) AS began_at
FROM (
    SELECT "partition", last_seen_at AS reached_at, recorded_at AS written_at FROM version_files
    UNION ALL
    SELECT origin_partition, received_at, recorded_at FROM deadletter_files
)
WHERE "partition" IS NOT NULL
GROUP BY "partition"
