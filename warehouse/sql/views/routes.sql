-- A row: one SIM card and the network of recipients, with its attempts of messages first reported within 28 days (UTC).
-- Key: source, device_id, channel_id, country, network_prefix.
-- Units: counts of attempts. failed = undelivered + not_sent + not_permitted; sent = delivered + undelivered + unreported:
--   those of which the operator has said what became of them, and those that expired after the phone had sent them.
--   observable_share is (delivered + undelivered) / sent, the share that ever gets a delivery report, and
--   delivered_per_observable is delivered / (delivered + undelivered), each from 0 to 1, or null without attempts, with its
--   95 % Wilson interval. So a network that reports no deliveries does not look like one that fails: its
--   observable_share is low.
-- Freshness: as delivery_hourly. Unreported attempts are known once they have expired.
WITH counted AS (
    SELECT
        source, device_id, channel_id, country, network_prefix, carrier,
        sum(attempted)::BIGINT AS attempted,
        sum(delivered)::BIGINT AS delivered,
        sum(failed)::BIGINT AS failed,
        sum(undelivered)::BIGINT AS undelivered,
        sum(unreported)::BIGINT AS unreported
    FROM routes_daily
    WHERE day > (now() AT TIME ZONE 'UTC')::DATE - 28
    GROUP BY ALL
)

SELECT
    *,
    delivered + undelivered + unreported AS sent,
    (delivered + undelivered) / nullif(sent, 0) AS observable_share,
    wilson_low(delivered + undelivered, sent) AS observable_share_low,
    wilson_high(delivered + undelivered, sent) AS observable_share_high,
    delivered / nullif(delivered + undelivered, 0) AS delivered_per_observable,
    wilson_low(delivered, delivered + undelivered) AS delivered_per_observable_low,
    wilson_high(delivered, delivered + undelivered) AS delivered_per_observable_high
FROM counted
