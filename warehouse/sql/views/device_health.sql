-- A row: one device of one source that had an outgoing message within 28 days.
-- Key: source, device_id.
-- Units: counts of messages. Rates are delivered / ended, from 0 to 1, or null without messages: rate of messages first
--   seen within 24 hours, own_rate of the 27 days before, fleet_rate of the source's other devices within 24 hours.
--   quiet_s is the time since its last report. 99 of 100 pauses between its hours with messages are at most
--   usual_quiet_s. errors maps reasons of failure within 24 hours to numbers of messages.
-- Freshness: as messages, up to now.
WITH hourly AS (
    SELECT
        source, device_id, hour,
        hour > now() - INTERVAL 24 HOUR AS is_recent,
        sum(COLUMNS(count_columns()))::BIGINT AS '\0'
    FROM delivery_hourly
    WHERE day >= (now() - INTERVAL 28 DAY)::DATE AND hour > now() - INTERVAL 28 DAY AND device_id IS NOT NULL
    GROUP BY source, device_id, hour
),

paused AS (
    SELECT *, epoch(hour) - epoch(lag(hour) OVER (PARTITION BY source, device_id ORDER BY hour)) AS pause_s FROM hourly
),

counted AS (
    SELECT
        source,
        device_id,
        coalesce(sum(COLUMNS('^(attempted|ended|delivered)$')) FILTER (is_recent), 0)::BIGINT AS '\0',
        sum(delivered) FILTER (NOT is_recent) / nullif(sum(ended) FILTER (NOT is_recent), 0) AS own_rate,
        quantile_cont(pause_s, 0.99) AS usual_quiet_s,
        MAP {
            'undelivered': coalesce(sum(undelivered) FILTER (is_recent), 0)::BIGINT,
            'generic': coalesce(sum(generic) FILTER (is_recent), 0)::BIGINT,
            'no_service': coalesce(sum(no_service) FILTER (is_recent), 0)::BIGINT,
            'null_pdu': coalesce(sum(null_pdu) FILTER (is_recent), 0)::BIGINT,
            'radio_off': coalesce(sum(radio_off) FILTER (is_recent), 0)::BIGINT,
            'not_permitted': coalesce(sum(not_permitted) FILTER (is_recent), 0)::BIGINT
        } AS errors,
        sum(open)::BIGINT AS open
    FROM paused
    GROUP BY source, device_id
),

-- Not a window over all devices: DuckDB would not push a filter on one device through it.
fleet AS (
    SELECT source, sum(ended) AS ended, sum(delivered) AS delivered
    FROM delivery_hourly
    WHERE day >= (now() - INTERVAL 24 HOUR)::DATE AND hour > now() - INTERVAL 24 HOUR AND device_id IS NOT NULL
    GROUP BY source
),

touched AS MATERIALIZED (
    SELECT DISTINCT time_bucket(INTERVAL 1 HOUR, first_seen_at) AS hour
    FROM changes
),

touched_messages AS (
    SELECT 1 AS sign, * FROM messages_by_day
    -- A condition, because DuckDB would hash all messages for a semi join with a few hours.
    WHERE coalesce(time_bucket(INTERVAL 1 HOUR, first_seen_at) IN (SELECT hour FROM touched), false)
),

last_reports AS (
    SELECT source, device_id, max(last_seen_at) AS last_seen_at, min(oldest_open_at) AS oldest_open_at
    FROM (
        FROM rollup('delivery')
        ANTI JOIN touched USING (hour)
        UNION ALL BY NAME
        FROM count_delivery('touched_messages')
    )
    WHERE day >= (now() - INTERVAL 28 DAY)::DATE AND hour > now() - INTERVAL 28 DAY
    GROUP BY source, device_id
)

SELECT
    source, device_id, counted.attempted, counted.ended, counted.delivered,
    counted.delivered / nullif(counted.ended, 0) AS rate,
    own_rate,
    (fleet.delivered - counted.delivered) / nullif(fleet.ended - counted.ended, 0) AS fleet_rate,
    last_seen_at,
    epoch(now()) - epoch(last_seen_at) AS quiet_s,
    usual_quiet_s, errors, open, oldest_open_at
FROM counted
INNER JOIN last_reports USING (source, device_id)
LEFT JOIN fleet USING (source)
