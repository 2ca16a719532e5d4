-- A row: the messages between one source and one number.
-- Key: source, number.
-- Units: outgoing and incoming count messages, outgoing ones by their first report, without duplicates. answered counts
--   outgoing messages with an incoming one before the next outgoing one. response_rate is answered / outgoing, from 0
--   to 1. first_reply_s is the seconds from the first answered message to its reply, as both were received. number is a
--   phone number, in one format: personal data.
-- Freshness: as messages.
WITH said AS (
    SELECT source, recipient AS number, first_seen_at AS said_at, true AS is_outgoing
    FROM messages
    WHERE outcome <> 'incoming' AND recipient IS NOT NULL
    UNION ALL
    SELECT source, sender, received_at, false
    FROM incoming_messages
    WHERE sender IS NOT NULL
),

followed AS (
    SELECT
        *,
        is_outgoing AND NOT lead(is_outgoing) OVER turns AS is_answered,
        epoch(lead(said_at) OVER turns) - epoch(said_at) AS reply_s
    FROM said
    WINDOW turns AS (PARTITION BY source, number ORDER BY said_at, is_outgoing DESC)
)

SELECT
    source,
    number,
    count(*) FILTER (is_outgoing) AS outgoing,
    count(*) FILTER (NOT is_outgoing) AS incoming,
    count(*) FILTER (is_answered) AS answered,
    count(*) FILTER (is_answered) / nullif(count(*) FILTER (is_outgoing), 0) AS response_rate,
    arg_min(reply_s, said_at) FILTER (is_answered) AS first_reply_s,
    min(said_at) AS first_at,
    max(said_at) AS last_at
FROM followed
GROUP BY source, number
