-- A row: the outgoing messages of one source, device and channel whose first report was received in one hour (UTC).
-- Key: source, device_id, channel_id, hour; device and channel are null while no report named one. day is that of the
--   hour: asked for days, it reads their files alone.
-- Units: counts of messages, each message once, whatever its attempts and reports; rates from 0 to 1, null of nothing.
--   attempted = ended + open; ended = delivered + undelivered + not_sent + not_permitted + expired; generic, no_service,
--   null_pdu, radio_off and other say why messages failed. *_low and *_high are the 95 % Wilson interval of a rate.
-- Freshness: as messages; an hour goes on changing until its messages have ended. Outlives them where `retain` drops them.
SELECT *, {rates}
FROM (
    SELECT
        source,
        device_id,
        channel_id,
        day,
        hour,
        {sums}
    FROM {delivery}
    GROUP BY source, device_id, channel_id, day, hour
    HAVING sum(attempted) > 0
)
