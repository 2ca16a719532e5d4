-- A row: the outgoing messages of one source, or of all, that were first reported within the last hour, or 24 hours.
-- Key: hours, source. hours is 1 or 24. source is null in the rows of all sources.
-- Units: as delivery_hourly.
-- Freshness: as messages, up to now.
SELECT
    hours,
    source,
    count(*) AS attempted,
    count(*) FILTER (is_ended) AS ended,
    count(*) FILTER (outcome = 'delivered') AS delivered,
    count(*) FILTER (is_delivered_first(outcome, attempts, attempt_details)) AS first_try_delivered,
    count(*) FILTER (outcome = 'undelivered') AS undelivered,
    count(*) FILTER (outcome = 'not_sent') AS not_sent,
    count(*) FILTER (outcome = 'not_permitted') AS not_permitted,
    count(*) FILTER (outcome = 'expired') AS expired,
    count(*) FILTER (NOT is_ended) AS open
FROM messages
INNER JOIN (SELECT unnest([1, 24]) AS hours) AS spans ON first_seen_at > now() - to_hours(hours)
WHERE outcome <> 'incoming'
GROUP BY GROUPING SETS ((hours), (hours, source))
