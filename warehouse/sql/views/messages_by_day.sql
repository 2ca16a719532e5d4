-- A row: as messages, with the day of its first report (UTC). A query for certain days reads only their files.
-- Key: source, sms_id (and so message_key).
-- Units and freshness: as messages.
-- Outer joins, not anti joins: a filter on columns of both sides reaches the files of both.
WITH live AS {once} (FROM live_messages),

old AS (
    SELECT live.message_key, live.source, live.sms_id
    FROM {base} AS base
    INNER JOIN live ON {same} AND live.weight < base.version
)

SELECT
    day,
    {message}
FROM (
    SELECT base.*, base.date AS day FROM {base} AS base
    LEFT JOIN live ON {same}
    WHERE live.sms_id IS NULL OR live.weight < base.version
    UNION ALL BY NAME
    SELECT live.*, (live.first_seen_at AT TIME ZONE 'UTC')::DATE AS day FROM live
    LEFT JOIN old AS base ON {same}
    WHERE base.sms_id IS NULL
)
