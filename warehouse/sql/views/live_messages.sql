-- A row: one message in the newest version that was written after the base files: the largest version, and of equal
--   ones the last written. The view messages combines these with the base files.
-- Key: source, sms_id (and so message_key).
-- Units: as messages. A version in the base files is newer than this one if it exceeds weight.
-- Freshness: as messages.
-- A record by which the stream drops its state of a message does not end the message here.
SELECT
    * EXCLUDE (filename),
    -- Written after the base, an equal version is newer, unless the stream had dropped its state of the message.
    version - CASE WHEN list_contains(flags, 'late_after_forgetting') THEN 2 ELSE 0 END AS weight
FROM live_files()
WHERE NOT is_forgotten AND version IS NOT NULL AND is_unmerged(filename, date, "partition", incarnation, "offset")
-- All three columns are the key, so that a filter on any of them reaches the files.
QUALIFY row_number() OVER (PARTITION BY source, sms_id, message_key ORDER BY version DESC, log_position(incarnation, "offset") DESC) = 1
