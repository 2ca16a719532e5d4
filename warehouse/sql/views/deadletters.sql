-- A row: one record that the stream could not read, also if it was written, read or put aside more than once.
-- Key: topic, incarnation, partition, "offset"; the record itself is origin_topic, origin_partition, origin_offset.
-- Units: times are TIMESTAMPTZ. body has the exact bytes. date is the UTC date of the file, to narrow a scan.
-- Freshness: as messages.
SELECT * FROM dataset('deadletters')
-- The id identifies a webhook: ingest may have written it twice, and a topic that was created again begins at offset 0.
QUALIFY
    origin_offset IS NULL
    OR row_number() OVER (
        PARTITION BY
            origin_topic, coalesce(ingest_id, concat_ws(':', incarnation, origin_partition, origin_offset))
        ORDER BY recorded_at, "offset"
    ) = 1
