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
        date_trunc('hour', first_seen_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour,
        count(*) AS attempted,
        count(*) FILTER (is_ended) AS ended,
        count(*) FILTER (outcome = 'delivered') AS delivered,
        count(*) FILTER (outcome = 'undelivered') AS undelivered,
        count(*) FILTER (outcome = 'not_sent') AS not_sent,
        count(*) FILTER (outcome = 'not_permitted') AS not_permitted,
        count(*) FILTER (outcome = 'expired') AS expired,
        count(*) FILTER (failure_class = 'generic') AS generic,
        count(*) FILTER (failure_class = 'no_service') AS no_service,
        count(*) FILTER (failure_class = 'null_pdu') AS null_pdu,
        count(*) FILTER (failure_class = 'radio_off') AS radio_off,
        count(*) FILTER (failure_class = 'other') AS other,
        count(*) FILTER (NOT is_ended) AS open
    FROM messages_by_day
    WHERE outcome <> 'incoming'
    GROUP BY source, device_id, channel_id, day, hour
    UNION ALL BY NAME
    SELECT date AS day, * EXCLUDE (date) FROM {base/delivery}
)
