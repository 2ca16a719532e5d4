-- A row: one message of the new recent base files, with the day of its first report (UTC).
-- Key: source, sms_id.
-- Reads: live, outdated, and merged, the rows of the recent base files that are merged.
SELECT
    live.* EXCLUDE (
        is_forgotten, topic, "partition", "offset", incarnation, date, weight
    ),
    (live.first_seen_at AT TIME ZONE 'UTC')::DATE AS day
FROM live
ANTI JOIN outdated ON outdated.source = live.source AND outdated.sms_id = live.sms_id
ANTI JOIN merged ON merged.source = live.source AND merged.sms_id = live.sms_id AND merged.version > live.weight
WHERE is_complete(live.source, live.sms_id, live.first_seen_at)
UNION ALL BY NAME
SELECT merged.*
FROM merged
ANTI JOIN live ON live.source = merged.source AND live.sms_id = merged.sms_id AND live.weight >= merged.version
