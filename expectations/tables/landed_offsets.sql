-- A row: one log (a partition in one incarnation of its topic) of a dataset.
-- Key: dataset, partition, incarnation. Units: next is the offset after the last one that has landed.
-- Freshness: of the moment. It is the snapshot that all measures are of.
SELECT dataset, "partition", coalesce(incarnation, '') AS incarnation, max("offset") + 1 AS next
FROM (
    SELECT 'deadletters' AS dataset, "partition", incarnation, "offset" FROM dataset_files('deadletters')
    UNION ALL
    SELECT 'messages', "partition", incarnation, "offset" FROM dataset_files('messages')
    UNION ALL
    SELECT 'raw', "partition", incarnation, "offset" FROM dataset_files('raw')
)
WHERE "partition" IS NOT NULL
GROUP BY ALL
