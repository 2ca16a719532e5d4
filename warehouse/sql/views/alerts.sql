-- A row: one time that an alert fired.
-- Key: alert_id, fired_at.
-- Units: times are TIMESTAMPTZ, lasted_s is seconds, ratios are from 0 to 1. What it rests on is as it was when it fired;
--   errors maps status ids to how many messages failed with them. by_channel is as it was when an alert of a narrower
--   scope fired or ended last.
--   resolution is new_normal where a rise stayed for so long that it became what is usual.
-- Freshness: as messages; of those that fire, lasted_s is of the moment.
SELECT
    alert_id,
    kind,
    scope,
    source,
    device_id,
    channel_id,
    since,
    fired_at,
    max(resolved_at) OVER same AS resolved_at,
    max(resolved_at) OVER same IS NULL AS is_firing,
    epoch(coalesce(max(resolved_at) OVER same, now())) - epoch(fired_at) AS lasted_s,
    count,
    failures,
    failures / nullif(count, 0) AS ratio,
    baseline,
    bound,
    known,
    errors,
    samples,
    share,
    budget_days,
    coalesce(what, '') AS what,
    coalesce(max_by(by_channel, changed_at) FILTER (phase = 'firing') OVER same, []) AS by_channel,
    coalesce(max(resolution) OVER same, '') AS resolution
FROM {alerts}
WHERE fired_at IS NOT NULL
WINDOW same AS (PARTITION BY alert_id, fired_at)
QUALIFY row_number() OVER (PARTITION BY alert_id, fired_at ORDER BY phase = 'firing' DESC, changed_at) = 1
