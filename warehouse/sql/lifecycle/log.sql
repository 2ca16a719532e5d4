-- A row: one status report of one partition, as it was received, of the messages to be rebuilt.
-- Key: position, which grows from one incarnation of the topic to the next.
-- Units: reported_at is when it was received, TIMESTAMPTZ.
-- Reads: raw_files, deadletters_files, and the variables partition, start and longest_address.
SELECT
    source, sms_id, status_id, device_id, channel_id, sent_at,
    coalesce(received_at, recorded_at) AS reported_at,
    -- Earlier releases landed addresses of any length.
    CASE WHEN length(address) <= getvariable('longest_address') THEN address END AS recipient,
    position
FROM raw_files
-- A record whose key is not its message's was put aside by the stream: it would split the message's state.
ANTI JOIN (
    SELECT origin_offset AS "offset", ingest_id FROM deadletters_files
    WHERE origin_topic = 'sms.raw' AND origin_partition = getvariable('partition') AND reason = 'wrong_key'
) AS misplaced
    -- Several incarnations of the topic have a record at this offset: the webhook's id distinguishes them.
    ON misplaced."offset" = raw_files."offset" AND misplaced.ingest_id IS NOT DISTINCT FROM raw_files.ingest_id
WHERE
    "partition" = getvariable('partition') AND kind = 'status' AND source IS NOT NULL AND reported_at >= getvariable('start')
    AND recorded_at >= getvariable('start') - INTERVAL 1 DAY
