-- A row: the attempts of one source, device and channel to one network, of messages first reported on one day (UTC).
-- Key: source, device_id, channel_id, day, country, network_prefix.
-- Units: counts of attempts. failed = undelivered + not_sent + not_permitted. unreported are those that the phone sent and
--   that expired without a delivery report.
-- Reads: rows, as delivery.sql, and the dataset prefixes.
WITH known AS MATERIALIZED (FROM networks_of(rows))

SELECT
    source, device_id, channel_id, day, country, network_prefix, carrier,
    sum(sign)::BIGINT AS attempted,
    coalesce(sum(sign) FILTER (outcome = 'delivered'), 0)::BIGINT AS delivered,
    coalesce(sum(sign) FILTER (outcome = 'undelivered'), 0)::BIGINT AS undelivered,
    coalesce(sum(sign) FILTER (outcome IN ('undelivered', 'not_sent', 'not_permitted')), 0)::BIGINT AS failed,
    coalesce(sum(sign) FILTER (outcome = 'expired' AND last_status_id = 6), 0)::BIGINT AS unreported
FROM attempts_of(rows)
LEFT JOIN known ON known.head = number_head(recipient)
GROUP BY ALL
