-- A row: one status report of one partition, as it was received, of the messages to be rebuilt.
-- Key: "offset".
-- Units: told_at is when it was received, TIMESTAMPTZ.
-- Reads: raw_files, deadletters_files, the variable start, and the partition as parameter 1.
SELECT
    source, sms_id, status_id, device_id, channel_id, sent_at,
    coalesce(received_at, recorded_at) AS told_at,
    address AS recipient,
    "offset"
FROM raw_files
-- A record whose key is not its message's was put aside by the stream: it would split the message's state.
ANTI JOIN (
    SELECT origin_offset AS "offset" FROM deadletters_files
    WHERE origin_topic = 'sms.raw' AND origin_partition = $1 AND reason = 'wrong_key'
) AS misplaced USING ("offset")
WHERE
    "partition" = $1 AND kind = 'status' AND source IS NOT NULL AND told_at >= getvariable('start')
    AND recorded_at >= getvariable('start') - INTERVAL 1 DAY
