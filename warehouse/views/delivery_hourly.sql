-- A row: the outgoing messages of one source, device and channel whose first report was received in one hour (UTC).
-- Key: source, device_id, channel_id, hour; device and channel are null while no report named one.
-- Units: counts of messages, each message once, whatever its attempts and reports; rates from 0 to 1, null of nothing.
--   attempted = ended + open; ended = delivered + undelivered + not_sent + not_permitted + expired.
-- Freshness: as messages; an hour goes on changing until its messages have ended.
SELECT
    source,
    device_id,
    channel_id,
    date_trunc('hour', first_seen_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour,
    count(*) AS attempted,
    count(*) FILTER (is_ended) AS ended,
    count(*) FILTER (outcome = 'delivered') AS delivered,
    count(*) FILTER (outcome = 'undelivered') AS undelivered,
    count(*) FILTER (outcome = 'not_sent') AS not_sent,
    count(*) FILTER (outcome = 'not_permitted') AS not_permitted,
    count(*) FILTER (outcome = 'expired') AS expired,
    count(*) FILTER (NOT is_ended) AS open,
    delivered / nullif(attempted, 0) AS delivered_per_attempted,
    delivered / nullif(ended, 0) AS delivered_per_ended,
    open / nullif(attempted, 0) AS open_share
FROM messages
WHERE outcome <> 'incoming'
GROUP BY ALL
