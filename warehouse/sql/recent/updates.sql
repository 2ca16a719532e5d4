-- A row: the newest version of one message of which a base file keeps an older one, or which no base file can hold.
-- Key: source, sms_id.
-- Reads: live and outdated.
SELECT live.* EXCLUDE (date, weight)
FROM live
LEFT JOIN outdated ON outdated.source = live.source AND outdated.sms_id = live.sms_id
WHERE live.weight >= outdated.version OR NOT is_complete(live.source, live.sms_id, live.first_seen_at)
