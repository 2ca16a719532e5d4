-- A row: one message in the newest version that was written since the base files were: the largest version, and among
--   equals the last written. What messages are made of, beside the base files.
-- Key: source, sms_id (and so message_key).
-- Units: as messages; weight is what a version in the base files has to exceed to be newer.
-- Freshness: as messages.
-- A record by which the stream forgets a message does not end the message here.
SELECT
    * EXCLUDE (filename),
    -- Written after the base, it is newer also where it counts as much; unless the stream had forgotten the message.
    version - CASE WHEN list_contains(flags, 'late_after_forgetting') THEN 2 ELSE 0 END AS weight
FROM {newer}
WHERE NOT is_forgotten AND version IS NOT NULL AND {live}
-- All three are the key: a filter on any of them reaches the files.
QUALIFY row_number() OVER (PARTITION BY source, sms_id, message_key ORDER BY version DESC, {position} DESC) = 1
