-- A row: one message that is newer than the rollups, with sign 1, or the counted version that it replaces, with sign
--   -1. The marts are the sum of the rollups and these rows.
-- Key: source, sms_id, sign.
-- Units: as messages.
-- Freshness: as messages.

-- Without current rollups, these are all messages, with sign 1 (`create_view_statements` in views.py).
WITH live AS MATERIALIZED (
    SELECT
        source, sms_id, device_id, channel_id, recipient, outcome, failure_class, last_status_id, is_ended,
        first_seen_at, last_seen_at, attempts, attempt_details, observations,
        weight, (first_seen_at AT TIME ZONE 'UTC')::DATE AS day
    FROM live_messages
),

met AS MATERIALIZED (
    SELECT
        base.source, base.sms_id, base.device_id, base.channel_id, base.recipient, base.outcome, base.failure_class,
        base.last_status_id, base.is_ended, base.first_seen_at, base.last_seen_at, base.attempts,
        base.attempt_details, base.observations,
        base.date AS day, live.weight >= base.version AS is_over
    FROM dataset('base') AS base
    INNER JOIN live ON live.source = base.source AND live.sms_id = base.sms_id
)

SELECT
    1 AS sign, day,
    source, sms_id, device_id, channel_id, recipient, outcome, failure_class, last_status_id, is_ended,
    first_seen_at, last_seen_at, attempts, attempt_details, observations
FROM live
ANTI JOIN (FROM met WHERE NOT is_over) AS old ON old.source = live.source AND old.sms_id = live.sms_id
UNION ALL
SELECT -1, day, * EXCLUDE (day, is_over) FROM met
WHERE is_over
