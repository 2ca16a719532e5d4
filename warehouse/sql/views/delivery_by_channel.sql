-- A row: all attempts of one source, device and channel: a SIM card.
-- Key: source, device_id, channel_id. Both are null until a report names them.
-- Units and freshness: as attempts_hourly: counts of attempts, not of messages. first_hour and last_hour are the hours of
--   its first and last message.
SELECT
    source,
    device_id,
    channel_id,
    min(hour) AS first_hour,
    max(hour) AS last_hour,
    sum(COLUMNS(count_columns()))::BIGINT AS '\0'
FROM attempts_hourly
GROUP BY source, device_id, channel_id
