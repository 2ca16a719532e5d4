-- A row: the newest version of one message of which a base file keeps an older one.
-- Key: source, sms_id.
-- Reads: live and outdated.
SELECT live.* EXCLUDE (date, weight)
FROM live
INNER JOIN outdated ON outdated.source = live.source AND outdated.sms_id = live.sms_id
WHERE live.weight >= outdated.version
