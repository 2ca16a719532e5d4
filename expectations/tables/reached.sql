-- A row: one partition of sms.raw, and until when the stream has processed it, by the receipt of its webhooks.
-- Key: partition. Units: none. Freshness: of the moment.
SELECT "partition", max(reached_at) AS until
FROM (
    SELECT "partition", max(last_seen_at) AS reached_at FROM version_files GROUP BY ALL
    UNION ALL
    SELECT origin_partition, max(received_at) FROM deadletter_files GROUP BY ALL
)
WHERE "partition" IS NOT NULL
GROUP BY "partition"
