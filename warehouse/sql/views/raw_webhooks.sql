-- A row: one webhook as it was accepted, with what could be read of its body; one that was sent twice is two rows.
-- Key: topic, incarnation, partition, "offset"; and ingest_id, unless somebody else than ingest wrote to Kafka.
-- Units: times are TIMESTAMPTZ; body holds the exact bytes; date is the UTC date of the file, to narrow a scan.
-- Freshness: what was landed, 5 s behind receipt at most by default.
SELECT * FROM {raw}
WHERE spooled IS NOT TRUE
UNION ALL BY NAME
-- What ingest forwarded from its spool may be in Kafka more than once. Only these are compared, for they are few, and
-- only with what was received at the same moments, which says which files to read.
SELECT copies.* FROM {raw} AS copies
ANTI JOIN (
    SELECT ingest_id FROM {raw}
    WHERE spooled IS NOT TRUE AND received_at IN (SELECT received_at FROM {raw} WHERE spooled)
) AS others USING (ingest_id)
WHERE spooled
QUALIFY ingest_id IS NULL OR row_number() OVER (PARTITION BY ingest_id ORDER BY "partition", recorded_at, "offset") = 1
