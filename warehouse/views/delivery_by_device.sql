-- A row: all outgoing messages of one source and device.
-- Key: source, device_id; device is null while no report named one.
-- Units and freshness: as delivery_hourly; first_hour and last_hour are the hours of its first and last message.
SELECT
    source,
    device_id,
    min(hour) AS first_hour,
    max(hour) AS last_hour,
    sum(attempted)::BIGINT AS attempted,
    sum(ended)::BIGINT AS ended,
    sum(delivered)::BIGINT AS delivered,
    sum(undelivered)::BIGINT AS undelivered,
    sum(not_sent)::BIGINT AS not_sent,
    sum(not_permitted)::BIGINT AS not_permitted,
    sum(expired)::BIGINT AS expired,
    sum(open)::BIGINT AS open,
    sum(delivered) / nullif(sum(attempted), 0) AS delivered_per_attempted,
    sum(delivered) / nullif(sum(ended), 0) AS delivered_per_ended,
    sum(open) / nullif(sum(attempted), 0) AS open_share
FROM delivery_hourly
GROUP BY source, device_id
