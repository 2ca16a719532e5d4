-- A row: the outgoing messages of one source, device and channel whose first report was received in one hour (UTC).
-- Key: source, device_id, channel_id, hour. Device and channel are null until a report names them. day is that of the
--   hour. A query for certain days reads only their files.
-- Units: counts of messages, each message once, whatever its attempts and reports. Rates are from 0 to 1, or null
--   without messages. attempted = ended + open; ended = delivered + undelivered + not_sent + not_permitted + expired.
--   generic, no_service, null_pdu, radio_off and other are reasons of failures. *_low and *_high are the 95 % Wilson
--   interval of a rate.
-- Freshness: as messages. An hour changes until its messages have ended. It stays when `retain` drops the messages.
SELECT
    source, device_id, channel_id, day, hour,
    sum(COLUMNS(count_columns()))::BIGINT AS '\0'
FROM (FROM rollup('delivery') UNION ALL BY NAME FROM count_delivery('changes'))
GROUP BY source, device_id, channel_id, day, hour
HAVING sum(attempted) > 0
