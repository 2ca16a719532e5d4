-- A row: the newest version that the stream has written of one message of a partition.
-- Key: source, sms_id.
-- Reads: messages_files, known_versions, and the variables partition and start.
SELECT
    source, sms_id, outcome, version, recorded_at, position, first_seen_at, last_seen_at,
    len(observations) AS observed,
    -- All compared columns. So the stream's lists, which nearly always agree, need not be carried along.
    hash({compared_columns}) AS content_hash
FROM messages_files
SEMI JOIN (
    -- Version and position are compared as one number, for structs take long. The mask selects the position.
    SELECT (max((version::HUGEINT << 64) + position) & ((1::HUGEINT << 64) - 1))::BIGINT AS position
    FROM known_versions WHERE "partition" = getvariable('partition') AND version IS NOT NULL
    GROUP BY source, sms_id
) AS newest USING (position)
WHERE "partition" = getvariable('partition') AND first_seen_at >= getvariable('start')
