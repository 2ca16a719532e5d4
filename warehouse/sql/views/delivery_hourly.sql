-- A row: the outgoing messages of one source, device and channel whose first report was received in one hour (UTC).
-- Key: source, device_id, channel_id, hour. Device and channel are null until a report names them. day is that of the
--   hour. A query for certain days reads only their files.
-- Units: counts of messages, each message once, whatever its attempts and reports: what its recipients got. For phones
--   and SIM cards, read attempts_hourly. attempted counts every message with a report of an outgoing status, documented
--   or not; a message with status 5 alone is incoming and counts nowhere. attempted = ended + open; ended = delivered +
--   undelivered + not_sent + not_permitted + expired. first_try_delivered are those of delivered that needed one attempt.
--   generic, no_service, null_pdu and radio_off are the reasons 9 to 12, other that of statuses that a setting makes
--   failures. Failures by 8, 100 and 101 have no column of reasons, but undelivered and not_permitted. Rates are from 0 to
--   1, or null without messages. *_low and *_high are the 95 % Wilson interval of a rate.
-- Freshness: as messages. An hour changes until its messages have ended. It stays when `retain` drops the messages.
SELECT
    source, device_id, channel_id, day, hour,
    sum(COLUMNS(count_columns()))::BIGINT AS '\0'
FROM (FROM rollup('delivery') UNION ALL BY NAME FROM count_delivery('changes'))
GROUP BY source, device_id, channel_id, day, hour
HAVING sum(attempted) > 0
