-- A row: a channel, a device or a source whose failures are monitored, and whose detector has changed its state at
--   least once.
-- Key: alert_id, that of its alert on failures.
-- Units: state is learning, quiet, pending or firing. state_since is TIMESTAMPTZ.
-- Freshness: as messages.
SELECT
    alert_id, scope, source, device_id, channel_id,
    CASE phase WHEN 'resolved' THEN 'quiet' ELSE phase END AS state,
    changed_at AS state_since
FROM dataset('alerts')
WHERE kind = 'failure_ratio'
QUALIFY row_number() OVER (PARTITION BY alert_id ORDER BY recorded_at DESC, "offset" DESC) = 1
