-- A row: one SIM card and the network of recipients, with its attempts of messages first reported on one day (UTC).
-- Key: source, device_id, channel_id, country, network_prefix, day. A query for certain days reads only their files.
-- Units: counts of attempts. failed = undelivered + not_sent + not_permitted. unreported are those that expired after the
--   phone had sent them. country, network_prefix and carrier are as in delivery_by_prefix.
-- Freshness: as delivery_hourly. Unreported attempts are known once they have expired.
SELECT
    source, device_id, channel_id, country, network_prefix, carrier, day,
    sum(attempted)::BIGINT AS attempted,
    sum(delivered)::BIGINT AS delivered,
    sum(undelivered)::BIGINT AS undelivered,
    sum(failed)::BIGINT AS failed,
    sum(unreported)::BIGINT AS unreported
FROM (FROM rollup('routes') UNION ALL BY NAME FROM count_routes('changes'))
GROUP BY ALL
HAVING sum(attempted) > 0
