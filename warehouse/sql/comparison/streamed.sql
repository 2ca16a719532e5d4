-- A row: the newest version that the stream has written of one message of a partition.
-- Key: source, sms_id.
-- Reads: messages_files, the variable start, and the partition as parameter 1.
-- The hash covers all compared columns. So the stream's lists, which nearly always agree, need not be carried along.
SELECT
    source, sms_id, outcome, version, recorded_at, position, first_seen_at, last_seen_at,
    len(observations) AS observed, {hash} AS content_hash
FROM messages_files
SEMI JOIN (
    -- Version and position are compared as one number, for structs take long. The mask selects the position.
    SELECT (max((version::HUGEINT << 64) + position) & {position_mask})::BIGINT AS position
    FROM messages_files WHERE "partition" = $1 AND version IS NOT NULL AND {is_known}
    GROUP BY source, sms_id
) AS newest USING (position)
WHERE "partition" = $1 AND first_seen_at >= getvariable('start')
