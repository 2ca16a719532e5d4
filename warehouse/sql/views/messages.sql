-- A row: one message with status reports, in its newest version: the largest version, and among equals the last written.
-- Key: source, sms_id (and so message_key).
-- Units: times are TIMESTAMPTZ, *_s are seconds between reports as they were received, or null. recipient is a number.
--   recorded_at is when the stream wrote the version, null where only the log has the message.
-- Freshness: what the stream made of the webhooks and was landed, 10 s behind receipt at most by default. What base files
--   hold, of closed days for good, comes from the log (`smspulse rebuild`).
SELECT * EXCLUDE (day) FROM messages_by_day
