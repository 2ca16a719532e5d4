-- A row: one message with status reports, in its newest version: the largest version, and of equal ones the last
--   written.
-- Key: source, sms_id (and so message_key).
-- Units: times are TIMESTAMPTZ. *_s are seconds between reports as they were received, or null. recipient is a number.
--   recorded_at is when the stream wrote the version. It is null if only the log has the message.
-- Freshness: the landed results of the stream, at most 10 s after receipt by default. Base files, which closed days
--   keep, follow from the log (`smspulse rebuild`).
SELECT * EXCLUDE (day) FROM messages_by_day
