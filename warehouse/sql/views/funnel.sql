-- A row: a stage, and the number of outgoing messages of one source and day (UTC of the first report) that reached it
--   or a later one. So a stage that was not reported loses no message.
-- Key: source, day, place. place is the stage's number from 1: attempted, queued, accepted, sent, delivered.
-- Units: messages is a count. Both shares are from 0 to 1.
-- Freshness: as delivery_hourly.
WITH counted AS (
    SELECT
        source,
        day,
        unnest([1, 2, 3, 4, 5]) AS place,
        unnest([sum(attempted), sum(queued), sum(accepted), sum(sent), sum(delivered)])::BIGINT AS messages
    FROM (FROM rollup('delivery') UNION ALL BY NAME FROM count_delivery('changes'))
    GROUP BY source, day
    -- An older release did not keep the stages of days that it dropped.
    HAVING sum(attempted) > 0 AND count(queued) > 0
)

SELECT
    source, day, place,
    ['attempted', 'queued', 'accepted', 'sent', 'delivered'][place] AS stage,
    messages,
    messages / nullif(first_value(messages) OVER stages, 0) AS share_of_attempted,
    messages / nullif(lag(messages) OVER stages, 0) AS share_of_stage_before
FROM counted
WINDOW stages AS (PARTITION BY source, day ORDER BY place)
