-- A row: as messages, with the day of its first report (UTC): asked for days, it reads their files alone.
-- Key: source, sms_id (and so message_key).
-- Units and freshness: as messages.
-- A record by which the stream forgets a message does not end the message here.
WITH live AS NOT MATERIALIZED (
    SELECT
        *,
        -- Written after the base, it is newer also where it counts as much; unless the stream had forgotten the message.
        version - CASE WHEN list_contains(flags, 'late_after_forgetting') THEN 2 ELSE 0 END AS weight
    FROM {messages}
    WHERE NOT is_forgotten AND version IS NOT NULL AND {live}
    -- All three are the key: a filter on any of them reaches the files.
    QUALIFY row_number() OVER (PARTITION BY source, sms_id, message_key ORDER BY version DESC, "offset" DESC) = 1
),

-- The other way round, the whole base would be looked up in memory.
old AS (
    SELECT live.message_key
    FROM {base} AS base
    INNER JOIN live ON live.message_key = base.message_key AND live.weight < base.version
),

newest AS (
    SELECT base.*, base.date AS day FROM {base} AS base
    ANTI JOIN live ON live.message_key = base.message_key AND live.weight >= base.version
    UNION ALL BY NAME
    SELECT live.*, (first_seen_at AT TIME ZONE 'UTC')::DATE AS day FROM live
    ANTI JOIN old ON old.message_key = live.message_key
)

SELECT
    day,
    {message}
FROM newest
