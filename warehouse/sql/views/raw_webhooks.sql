-- A row: one webhook as it was accepted, with the fields that could be read of its body. A webhook sent twice is two
--   rows.
-- Key: topic, incarnation, partition, "offset"; and ingest_id, if only ingest writes to Kafka.
-- Units: times are TIMESTAMPTZ. body has the exact bytes. date is the UTC date of the file, to narrow a scan.
-- Freshness: the landed records, at most 5 s after receipt by default.
SELECT * FROM dataset('raw')
WHERE spooled IS NOT TRUE
UNION ALL BY NAME
-- Webhooks that ingest forwarded from its spool may be in Kafka more than once. Only these few are compared, and only
-- with webhooks received at the same times, which limits the files to read.
SELECT copies.* FROM dataset('raw') AS copies
ANTI JOIN (
    SELECT ingest_id FROM dataset('raw')
    WHERE spooled IS NOT TRUE AND received_at IN (SELECT received_at FROM dataset('raw') WHERE spooled)
) AS others USING (ingest_id)
WHERE spooled
QUALIFY ingest_id IS NULL OR row_number() OVER (PARTITION BY ingest_id ORDER BY "partition", recorded_at, "offset") = 1
