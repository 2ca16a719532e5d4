-- A row: one message that is newer than the rollups, with sign 1, or the counted version that it replaces, with sign
--   -1.
--   The marts are the sum of the rollups and these rows.
-- Key: source, sms_id, sign.
-- Units: as messages.
-- Freshness: as messages.
WITH live AS {once} (
    SELECT {counted}, sms_id, weight, (first_seen_at AT TIME ZONE 'UTC')::DATE AS day FROM live_messages
),

met AS {once} (
    SELECT {base.counted}, base.sms_id, base.date AS day, live.weight >= base.version AS is_over
    FROM {base} AS base
    INNER JOIN live ON live.source = base.source AND live.sms_id = base.sms_id
)

SELECT 1 AS sign, day, {counted} FROM live
ANTI JOIN (FROM met WHERE NOT is_over) AS old ON old.source = live.source AND old.sms_id = live.sms_id
UNION ALL
SELECT -1, day, {counted} FROM met
WHERE is_over
