-- A row: one recent message, as the views show it.
-- Key: source, sms_id. Units: none. Freshness: as messages.
SELECT source, sms_id, first_seen_at, last_seen_at, outcome, is_ended
FROM messages
WHERE last_seen_at >= getvariable('counted')
