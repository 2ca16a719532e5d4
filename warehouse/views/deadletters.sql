-- A row: one record that the stream could not read.
-- Key: topic, partition, "offset"; the record itself is origin_topic, origin_partition, origin_offset.
-- Units: times are TIMESTAMPTZ; body holds the exact bytes; date is the UTC date of the file, to narrow a scan.
-- Freshness: as messages.
SELECT * FROM {deadletters}
