-- A row: the outgoing messages of one source to one network of one country, first reported on one day (UTC).
-- Key: source, day, country, network_prefix.
-- Units: as delivery_by_prefix.
-- Reads: rows, as delivery.sql, and the dataset prefixes.
-- Read twice, for the numbers are many and their networks few.
WITH headed AS (
    SELECT
        source,
        day,
        CASE WHEN recipient LIKE '+%' THEN substr(recipient, 2, 9) END AS head,
        sign, is_ended, outcome
    FROM query_table(rows)
    WHERE outcome <> 'incoming'
),

known AS MATERIALIZED (
    SELECT head, max_by({'country': country, 'prefix': prefix, 'carrier': carrier}, len(prefix)) AS longest
    FROM (SELECT head, unnest(range(1, 10)) AS size FROM (SELECT DISTINCT head FROM headed) AS heads) AS cut
    INNER JOIN dataset('prefixes') AS prefixes ON prefix = substr(head, 1, size)
    GROUP BY head
)

SELECT
    source,
    day,
    longest.country AS country,
    CASE WHEN longest.carrier IS NOT NULL THEN longest.prefix END AS network_prefix,
    longest.carrier AS carrier,
    sum(sign)::BIGINT AS attempted,
    coalesce(sum(sign) FILTER (is_ended), 0)::BIGINT AS ended,
    coalesce(sum(sign) FILTER (outcome = 'delivered'), 0)::BIGINT AS delivered,
    coalesce(sum(sign) FILTER (NOT is_ended), 0)::BIGINT AS open
FROM headed
LEFT JOIN known ON known.head = headed.head
GROUP BY ALL
