-- A row: one observation that a message does not hold, because it had the largest number of them before. The stream puts
--   its reports aside as `too_many_reports`. Those of an observation that is held count, however many they are.
-- Key: source, sms_id, status_id, device_id, channel_id, sent_at.
-- Reads: message_summary, all_reports (log.sql), and the variable max_observations.
WITH observed AS (
    SELECT source, sms_id, status_id, device_id, channel_id, sent_at, min(position) AS first_position
    FROM all_reports AS log
    SEMI JOIN (FROM message_summary WHERE reports > getvariable('max_observations')) AS crowded USING (source, sms_id)
    GROUP BY ALL
)

SELECT source, sms_id, status_id, device_id, channel_id, sent_at
FROM observed
QUALIFY row_number() OVER (PARTITION BY source, sms_id ORDER BY first_position) > getvariable('max_observations')
