-- A row: the attempts of one source, device and channel, of outgoing messages whose first report was received in one hour
--   (UTC).
-- Key: source, device_id, channel_id, hour. Device and channel are null until a report names them. day is that of the
--   hour. A query for certain days reads only their files.
-- Units: as delivery_hourly, but counts of attempts: a message that one phone failed to send and another one delivered is
--   a failure of the first and a delivery of the second. Hours are those of messages, so that attempts and messages of one
--   hour belong together.
-- Freshness: as delivery_hourly. Days whose messages a release up to 0.1 has dropped are missing.
SELECT
    source, device_id, channel_id, day, hour,
    sum(COLUMNS(count_columns()))::BIGINT AS '\0'
FROM (FROM rollup('attempts') UNION ALL BY NAME FROM count_attempts('changes'))
GROUP BY source, device_id, channel_id, day, hour
HAVING sum(attempted) > 0
