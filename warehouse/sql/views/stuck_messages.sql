-- A row: an open outgoing message without a report for 20 minutes.
-- Key: source, sms_id (and so message_key).
-- Units: waiting_s is the seconds since its last report. outcome is the stage at which it waits.
-- Freshness: as messages, up to now. After SMSPULSE_STREAM_EXPIRE_AFTER_H, a message is expired and no longer stuck.
SELECT
    source, sms_id, message_key, device_id, channel_id, outcome, first_seen_at, last_seen_at, attempts,
    epoch(now()) - epoch(last_seen_at) AS waiting_s
FROM messages
WHERE NOT is_ended AND outcome <> 'incoming' AND last_seen_at < now() - INTERVAL 20 MINUTE
