-- A row: a device of which every channel fails. Of the channels that it used within a day, at least two, each has had only
-- failures: at least the last five attempts of each, and twenty of all.
WITH ended AS (
    SELECT
        *,
        coalesce(ended_at > max(ended_at) FILTER (outcome = 'delivered') OVER channel, true) AS is_since
    FROM recent_attempts
    WHERE is_ended AND outcome NOT IN ('expired', 'incoming') AND device_id IS NOT NULL
    WINDOW channel AS (PARTITION BY source, device_id, channel_id)
),

marked AS (
    SELECT *, count(*) FILTER (is_since) OVER (PARTITION BY source, device_id, channel_id) AS run FROM ended
)

SELECT
    'device' AS scope,
    source,
    device_id,
    min(run) >= 5 AND count(*) FILTER (is_since) >= 20 AS is_bad,
    epoch_ms(min(ended_at) FILTER (is_since)) AS since,
    count(*) FILTER (is_since) AS count,
    count(*) FILTER (is_since) AS failures,
    histogram(status_id::VARCHAR) FILTER (is_since) AS errors,
    max_by(message_key, ended_at, 5) FILTER (is_since) AS samples,
    printf(
        'all %d channels are down: the last %d messages failed',
        count(DISTINCT coalesce(channel_id, -1)), count(*) FILTER (is_since)
    ) AS what
FROM marked
GROUP BY source, device_id
HAVING count(DISTINCT coalesce(channel_id, -1)) > 1 AND min(run) > 0
