-- A row: one record that the stream could not read, also where it was read, and put aside, more than once.
-- Key: topic, partition, "offset"; the record itself is origin_topic, origin_partition, origin_offset.
-- Units: times are TIMESTAMPTZ; body holds the exact bytes; date is the UTC date of the file, to narrow a scan.
-- Freshness: as messages.
SELECT * FROM {deadletters}
-- The webhook is in the key too: a topic that is made anew begins its offsets anew.
QUALIFY
    origin_offset IS NULL
    OR row_number() OVER (PARTITION BY origin_topic, origin_partition, origin_offset, ingest_id ORDER BY "offset") = 1
