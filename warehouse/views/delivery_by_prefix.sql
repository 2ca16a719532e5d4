-- A row: the outgoing messages of one source to one network of one country, first reported on one day (UTC).
-- Key: source, day, country, network_prefix.
-- Units: country is the ISO region of the calling code, the largest where several share one; network_prefix is the longest
--   prefix, in international form without +, that the library phonenumbers knows a carrier for, and carrier its name: the
--   first one, for numbers can be ported. All three are null for recipients that are no international number. Counts and
--   rates as in delivery_hourly.
-- Freshness: as messages.
WITH headed AS (
    SELECT
        source,
        day,
        CASE WHEN recipient LIKE '+%' THEN substr(recipient, 2, 9) END AS head,
        count(*) AS attempted,
        count(*) FILTER (is_ended) AS ended,
        count(*) FILTER (outcome = 'delivered') AS delivered,
        count(*) FILTER (NOT is_ended) AS open
    FROM messages_by_day
    WHERE outcome <> 'incoming'
    GROUP BY source, day, head
),

known AS (
    SELECT head, max_by({'country': country, 'prefix': prefix, 'carrier': carrier}, len(prefix)) AS longest
    FROM (SELECT head, unnest(range(1, 10)) AS size FROM (SELECT DISTINCT head FROM headed) AS heads) AS cut
    INNER JOIN {prefixes} AS prefixes ON prefix = substr(head, 1, size)
    GROUP BY head
)

SELECT *, {rates}
FROM (
    SELECT
        source,
        day,
        longest.country AS country,
        CASE WHEN longest.carrier IS NOT NULL THEN longest.prefix END AS network_prefix,
        longest.carrier AS carrier,
        sum(attempted)::BIGINT AS attempted,
        sum(ended)::BIGINT AS ended,
        sum(delivered)::BIGINT AS delivered,
        sum(open)::BIGINT AS open
    FROM headed
    LEFT JOIN known ON known.head = headed.head
    GROUP BY ALL
)
