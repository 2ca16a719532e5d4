-- A row: what the views of delivery say of one source.
-- Key: none. Units: rates are from 0 to 1; delivery_adds_up counts the messages by which view and messages differ.
-- Freshness: as messages.
WITH devices AS MATERIALIZED (
    SELECT
        coalesce(source, '(no source)') AS scope, attempted, ended, delivered, open,
        delivered_per_attempted, delivered_per_ended, open_share
    FROM delivery_by_device
),

counted AS (
    SELECT scope, sum(attempted) AS attempted, sum(ended) AS ended, sum(delivered) AS delivered
    FROM (
        SELECT
            coalesce(source, '(no source)') AS scope, count(*) AS attempted, count(*) FILTER (is_ended) AS ended,
            count(*) FILTER (outcome = 'delivered') AS delivered
        -- Not from what was read a while ago: more may have been landed.
        FROM messages
        WHERE outcome <> 'incoming'
        GROUP BY ALL
        UNION ALL BY NAME
        -- Of messages that were too old to be kept, the counts are.
        SELECT coalesce(source, '(no source)') AS scope, attempted, ended, delivered FROM kept
    )
    GROUP BY scope
)

SELECT
    scope,
    unnest([
        min(least(delivered_per_attempted, delivered_per_ended, open_share)),
        max(greatest(delivered_per_attempted, delivered_per_ended, open_share))
    ]) AS rates_in_range
FROM devices
GROUP BY scope

UNION ALL BY NAME
SELECT
    scope,
    abs(sum(devices.attempted) - any_value(counted.attempted))
        + abs(sum(devices.ended) - any_value(counted.ended))
        + abs(sum(devices.delivered) - any_value(counted.delivered))
        + abs(sum(devices.attempted) - sum(devices.ended) - sum(devices.open)) AS delivery_adds_up
FROM devices
FULL JOIN counted USING (scope)
-- A part of the messages is counted otherwise than all.
WHERE NOT getvariable('is_part')
GROUP BY scope
