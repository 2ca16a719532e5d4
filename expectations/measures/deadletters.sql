-- A row: the measures of one source.
-- Key: scope. Units: counts of rows, 0 where all is well; shares are from 0 to 1.
-- Freshness: of the moment 'now'.
SELECT
    coalesce(source, '(no source)') AS scope,
    count(*) FILTER (origin_offset IS NULL) AS deadletters_complete,
    min(topic || ':' || "partition" || ':' || "offset", 5) FILTER (origin_offset IS NULL) AS deadletters_complete_rows
FROM raw_files
INNER JOIN reached USING ("partition")
-- Several incarnations of a topic have a record at one offset. The id of the webhook distinguishes them.
LEFT JOIN (SELECT DISTINCT origin_topic, origin_partition, origin_offset, ingest_id FROM deadletter_files) AS letters
    ON origin_topic = topic AND origin_partition = "partition" AND origin_offset = "offset"
    AND letters.ingest_id IS NOT DISTINCT FROM raw_files.ingest_id
WHERE kind = 'unreadable' AND received_at < settled_until - getvariable('waiting')
    -- The stream may have read a record that made the lander fail. Its dead letters are those that made itself fail.
    AND reason IS DISTINCT FROM 'processing_failed'
GROUP BY scope

UNION ALL BY NAME
SELECT
    coalesce(letters.source, '(no source)') AS scope,
    count(*) FILTER (raw_files."offset" IS NULL) AS deadletters_in_log
FROM deadletter_files AS letters
LEFT JOIN raw_files
    ON raw_files.topic = origin_topic AND raw_files."partition" = origin_partition
    AND raw_files."offset" = origin_offset AND raw_files.ingest_id IS NOT DISTINCT FROM letters.ingest_id
WHERE origin_topic = 'sms.raw' AND letters.received_at > getvariable('covered')
    AND letters.received_at < getvariable('logged') - getvariable('waiting')
GROUP BY scope

UNION ALL BY NAME
SELECT
    coalesce(letters.source, '(no source)') AS scope,
    count(DISTINCT (origin_partition, origin_offset, ingest_id)) / any_value(webhooks) AS deadletters_few
FROM deadletter_files AS letters
INNER JOIN (
    SELECT source, count(*) AS webhooks FROM raw_files WHERE received_at > getvariable('recent') GROUP BY source
) AS landed ON landed.source IS NOT DISTINCT FROM letters.source
WHERE received_at > getvariable('recent')
GROUP BY letters.source
