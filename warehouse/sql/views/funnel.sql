-- A row: a stage of the way, and how many of the outgoing messages of one source and day (UTC of the first report) got
--   there: to that stage, or to one behind it, so that a stage that was never reported loses nobody.
-- Key: source, day, place; place is the stage's number from 1: attempted, queued, accepted, sent, delivered.
-- Units: messages is a count, both shares are from 0 to 1.
-- Freshness: as delivery_hourly.
WITH counted AS (
    SELECT
        source,
        day,
        unnest([1, 2, 3, 4, 5]) AS place,
        unnest([sum(attempted), sum(queued), sum(accepted), sum(sent), sum(delivered)])::BIGINT AS messages
    FROM {delivery}
    GROUP BY source, day
    -- Of days that an older release dropped, the stages were not kept.
    HAVING sum(attempted) > 0 AND count(queued) > 0
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
