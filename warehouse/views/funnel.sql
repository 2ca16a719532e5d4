-- A row: a stage of the way, and how many of the outgoing messages of one source and day (UTC of the first report) got
--   there: to that stage, or to one behind it, so that a stage that was never reported loses nobody.
-- Key: source, day, place; place is the stage's number from 1: attempted, queued, accepted, sent, delivered.
-- Units: messages is a count, both shares are from 0 to 1.
-- Freshness: as messages.
WITH reached AS (
    SELECT
        source,
        day,
        CASE
            WHEN outcome = 'delivered' THEN 5
            WHEN outcome IN ('undelivered', 'sent') THEN 4
            WHEN list_contains(status_ids, 6) THEN 4
            WHEN list_contains(status_ids, 2) THEN 3
            WHEN list_contains(status_ids, 3) THEN 2
            ELSE 1
        END AS furthest
    FROM (SELECT *, [each.status_id FOR each IN observations] AS status_ids FROM messages_by_day)
    WHERE outcome <> 'incoming'
),

counted AS (
    SELECT
        source,
        day,
        unnest([1, 2, 3, 4, 5]) AS place,
        unnest([
            count(*),
            count(*) FILTER (furthest >= 2),
            count(*) FILTER (furthest >= 3),
            count(*) FILTER (furthest >= 4),
            count(*) FILTER (furthest >= 5)
        ]) AS messages
    FROM reached
    GROUP BY source, day
)

SELECT
    source,
    day,
    place,
    ['attempted', 'queued', 'accepted', 'sent', 'delivered'][place] AS stage,
    messages,
    messages / nullif(first_value(messages) OVER stages, 0) AS share_of_attempted,
    messages / nullif(lag(messages) OVER stages, 0) AS share_of_stage_before
FROM counted
WINDOW stages AS (PARTITION BY source, day ORDER BY place)
