-- A row: one time that an alert fired.
-- Key: alert_id, fired_at.
-- Units: times are TIMESTAMPTZ, lasted_s is seconds, ratios are from 0 to 1. Counts and ratios are of the time when it
--   fired. errors maps status ids to numbers of failed messages. by_channel is of the time when an alert of a narrower
--   scope last fired or ended. resolution is new_normal if a rise lasted so long that it became the baseline.
-- Freshness: as messages. lasted_s of firing alerts is up to now.
SELECT
    alert_id, kind, scope, source, device_id, channel_id, since, fired_at,
    max(resolved_at) OVER same AS resolved_at,
    max(resolved_at) OVER same IS NULL AS is_firing,
    epoch(coalesce(max(resolved_at) OVER same, now())) - epoch(fired_at) AS lasted_s,
    count,
    failures,
    failures / nullif(count, 0) AS ratio,
    baseline, bound, known, errors, samples, share, budget_days,
    coalesce(what, '') AS what,
    coalesce(max_by(by_channel, changed_at) FILTER (phase = 'firing') OVER same, []) AS by_channel,
    coalesce(max(resolution) OVER same, '') AS resolution
FROM dataset('alerts')
WHERE fired_at IS NOT NULL
WINDOW same AS (PARTITION BY alert_id, fired_at)
QUALIFY row_number() OVER (PARTITION BY alert_id, fired_at ORDER BY phase = 'firing' DESC, changed_at) = 1
