-- A row: the outgoing messages of one source to one network of one country, first reported on one day (UTC).
-- Key: source, day, country, network_prefix.
-- Units: as delivery_by_prefix.
-- Reads: rows, as delivery.sql, and the dataset prefixes.
WITH headed AS (
    SELECT source, day, number_head(recipient) AS head, sign, is_ended, outcome, attempts, attempt_details
    FROM query_table(rows)
    WHERE outcome <> 'incoming'
),

known AS MATERIALIZED (FROM networks_of(rows))

SELECT
    source,
    day,
    country,
    network_prefix,
    carrier,
    sum(sign)::BIGINT AS attempted,
    coalesce(sum(sign) FILTER (is_ended), 0)::BIGINT AS ended,
    coalesce(sum(sign) FILTER (outcome = 'delivered'), 0)::BIGINT AS delivered,
    coalesce(sum(sign) FILTER (is_delivered_first(outcome, attempts, attempt_details)), 0)::BIGINT AS first_try_delivered,
    coalesce(sum(sign) FILTER (NOT is_ended), 0)::BIGINT AS open
FROM headed
LEFT JOIN known ON known.head = headed.head
GROUP BY ALL
