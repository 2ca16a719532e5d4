-- A row: one device of one source that had an outgoing message within 28 days.
-- Key: source, device_id.
-- Units: counts of messages; rates are delivered / ended, from 0 to 1, null of nothing: rate of messages first seen within
--   24 hours, own_rate of the 27 days before, fleet_rate of the source's other devices within 24 hours. quiet_s is the time
--   since its last report, usual_quiet_s the time that 99 of 100 pauses between its hours with messages do not exceed.
--   errors maps why messages failed within 24 hours to how many did.
-- Freshness: as messages, of the moment.
WITH hourly AS (
    SELECT *, hour > now() - INTERVAL 24 HOUR AS is_recent
    FROM delivery_hourly
    WHERE hour > now() - INTERVAL 28 DAY AND device_id IS NOT NULL
),

counted AS (
    SELECT
        source,
        device_id,
        coalesce(sum(attempted) FILTER (is_recent), 0)::BIGINT AS attempted,
        coalesce(sum(ended) FILTER (is_recent), 0)::BIGINT AS ended,
        coalesce(sum(delivered) FILTER (is_recent), 0)::BIGINT AS delivered,
        sum(delivered) FILTER (NOT is_recent) / nullif(sum(ended) FILTER (NOT is_recent), 0) AS own_rate,
        MAP {
            'undelivered': coalesce(sum(undelivered) FILTER (is_recent), 0)::BIGINT,
            'generic': coalesce(sum(generic) FILTER (is_recent), 0)::BIGINT,
            'no_service': coalesce(sum(no_service) FILTER (is_recent), 0)::BIGINT,
            'null_pdu': coalesce(sum(null_pdu) FILTER (is_recent), 0)::BIGINT,
            'radio_off': coalesce(sum(radio_off) FILTER (is_recent), 0)::BIGINT,
            'not_permitted': coalesce(sum(not_permitted) FILTER (is_recent), 0)::BIGINT
        } AS errors
    FROM hourly
    GROUP BY source, device_id
),

paused AS (
    SELECT
        source,
        device_id,
        epoch(hour) - epoch(lag(hour) OVER (PARTITION BY source, device_id ORDER BY hour)) AS pause_s
    FROM (SELECT DISTINCT source, device_id, hour FROM hourly)
),

rhythm AS (
    SELECT source, device_id, quantile_cont(pause_s, 0.99) AS usual_quiet_s
    FROM paused
    GROUP BY source, device_id
),

heard AS (
    SELECT
        source,
        device_id,
        max(last_seen_at) AS last_seen_at,
        count(*) FILTER (NOT is_ended) AS open,
        min(first_seen_at) FILTER (NOT is_ended) AS oldest_open_at
    FROM messages
    WHERE first_seen_at > now() - INTERVAL 28 DAY AND outcome <> 'incoming'
    GROUP BY source, device_id
)

SELECT
    source,
    device_id,
    attempted,
    ended,
    delivered,
    delivered / nullif(ended, 0) AS rate,
    own_rate,
    (sum(delivered) OVER fleet - delivered) / nullif(sum(ended) OVER fleet - ended, 0) AS fleet_rate,
    last_seen_at,
    epoch(now()) - epoch(last_seen_at) AS quiet_s,
    usual_quiet_s,
    errors,
    open,
    oldest_open_at
FROM counted
INNER JOIN rhythm USING (source, device_id)
INNER JOIN heard USING (source, device_id)
WINDOW fleet AS (PARTITION BY source)
