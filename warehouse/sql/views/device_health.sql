-- A row: one device of one source that had an outgoing message within 28 days.
-- Key: source, device_id.
-- Units: counts of attempts of messages first seen within 24 hours; open of 28 days. Rates are delivered / ended, from 0 to
--   1, or null without attempts: rate of these 24 hours, rate_before of the 24 hours before them, own_rate of all 27 days
--   before them, fleet_rate of the source's other devices within 24 hours. change_low and change_high are the 95 %
--   interval of rate - rate_before (Newcombe's): the device got worse if both are below 0. chance, false_discovery_rate
--   and is_failing are as in devices_now. quiet_s is the time since its last report. 99 of 100 pauses between its hours
--   with messages are at most usual_quiet_s. errors maps reasons of failure within 24 hours to numbers of attempts.
--   oldest_open_hour is that of the oldest message with an open attempt.
-- Freshness: as messages, up to now.

-- Once, because planning the view takes longer than reading it.
WITH fresh AS MATERIALIZED (FROM count_attempts('changes')),

-- Hours in which a span of 24 hours begins are divided: their attempts from that time on are moved to the newer span.
divided_messages AS (
    SELECT 1 AS sign, * FROM messages_by_day
    WHERE
        day IN (SELECT unnest([
            ((now() - INTERVAL 24 HOUR) AT TIME ZONE 'UTC')::DATE, ((now() - INTERVAL 48 HOUR) AT TIME ZONE 'UTC')::DATE
        ]))
        AND (
            first_seen_at BETWEEN now() - INTERVAL 24 HOUR
            AND time_bucket(INTERVAL 1 HOUR, now() - INTERVAL 24 HOUR) + INTERVAL 1 HOUR - INTERVAL 1 MICROSECOND
            OR first_seen_at BETWEEN now() - INTERVAL 48 HOUR
            AND time_bucket(INTERVAL 1 HOUR, now() - INTERVAL 48 HOUR) + INTERVAL 1 HOUR - INTERVAL 1 MICROSECOND
        )
),

moved AS MATERIALIZED (
    SELECT *, CASE WHEN hour > now() - INTERVAL 48 HOUR THEN 0 ELSE 1 END AS span FROM count_attempts('divided_messages')
    WHERE device_id IS NOT NULL
),

hourly AS (
    SELECT
        source, device_id, hour,
        -- 0 of the last 24 hours, 1 of the 24 before, 2 of the time before.
        CASE WHEN hour > now() - INTERVAL 24 HOUR THEN 0 WHEN hour > now() - INTERVAL 48 HOUR THEN 1 ELSE 2 END AS span,
        sum(COLUMNS(count_columns()))::BIGINT AS '\0',
        -- Versions of a message only grow, so one that was replaced has no later report.
        max(last_seen_at) AS last_seen_at
    FROM (FROM rollup('attempts') UNION ALL BY NAME FROM fresh)
    WHERE day >= (now() - INTERVAL 28 DAY)::DATE AND hour > now() - INTERVAL 28 DAY AND device_id IS NOT NULL
    GROUP BY source, device_id, hour
    HAVING sum(attempted) > 0
),

paused AS (
    SELECT *, epoch(hour) - epoch(lag(hour) OVER (PARTITION BY source, device_id ORDER BY hour)) AS pause_s FROM hourly
),

spans AS (
    SELECT source, device_id, span, COLUMNS(count_columns()), hour, pause_s, last_seen_at FROM paused
    UNION ALL BY NAME
    SELECT source, device_id, span, COLUMNS(count_columns()) FROM moved
    UNION ALL BY NAME
    SELECT source, device_id, span + 1 AS span, -COLUMNS(count_columns()) FROM moved
),

counted AS (
    SELECT
        source,
        device_id,
        coalesce(sum(COLUMNS('^(attempted|ended|delivered)$')) FILTER (span = 0), 0)::BIGINT AS '\0',
        coalesce(sum(ended) FILTER (span = 1), 0)::BIGINT AS ended_before,
        coalesce(sum(delivered) FILTER (span = 1), 0)::BIGINT AS delivered_before,
        sum(delivered) FILTER (span > 0) / nullif(sum(ended) FILTER (span > 0), 0) AS own_rate,
        max(last_seen_at) AS last_seen_at,
        quantile_cont(pause_s, 0.99) AS usual_quiet_s,
        MAP {
            'undelivered': coalesce(sum(undelivered) FILTER (span = 0), 0)::BIGINT,
            'generic': coalesce(sum(generic) FILTER (span = 0), 0)::BIGINT,
            'no_service': coalesce(sum(no_service) FILTER (span = 0), 0)::BIGINT,
            'null_pdu': coalesce(sum(null_pdu) FILTER (span = 0), 0)::BIGINT,
            'radio_off': coalesce(sum(radio_off) FILTER (span = 0), 0)::BIGINT,
            'not_permitted': coalesce(sum(not_permitted) FILTER (span = 0), 0)::BIGINT
        } AS errors,
        sum(open)::BIGINT AS open,
        min(hour) FILTER (open > 0) AS oldest_open_hour
    FROM spans
    GROUP BY source, device_id
),

-- Not windows over `counted`: DuckDB would not push a filter on one device through them, and would read 28 days of all.
recent AS (
    SELECT source, device_id, sum(ended)::BIGINT AS ended, sum(delivered)::BIGINT AS delivered
    FROM (
        SELECT source, device_id, ended, delivered
        FROM (FROM rollup('attempts') UNION ALL BY NAME FROM fresh)
        WHERE day >= (now() - INTERVAL 24 HOUR)::DATE AND hour > now() - INTERVAL 24 HOUR AND device_id IS NOT NULL
        UNION ALL
        SELECT source, device_id, ended, delivered FROM moved WHERE span = 0
    )
    GROUP BY source, device_id
)

SELECT
    source, device_id, counted.attempted, counted.ended, counted.delivered,
    counted.delivered / nullif(counted.ended, 0) AS rate,
    delivered_before / nullif(ended_before, 0) AS rate_before,
    difference_low(counted.delivered, counted.ended, delivered_before, ended_before) AS change_low,
    difference_high(counted.delivered, counted.ended, delivered_before, ended_before) AS change_high,
    own_rate,
    others_delivered / nullif(others_ended, 0) AS fleet_rate,
    chance,
    false_discovery_rate,
    is_failing,
    last_seen_at,
    epoch(now()) - epoch(last_seen_at) AS quiet_s,
    usual_quiet_s, errors, open, oldest_open_hour
FROM counted
LEFT JOIN judge_devices('recent') AS judged USING (source, device_id)
