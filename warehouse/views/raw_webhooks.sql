-- A row: one webhook as it was accepted, duplicates included, with what could be read of its body.
-- Key: topic, partition, "offset".
-- Units: times are TIMESTAMPTZ; body holds the exact bytes; date is the UTC date of the file, to narrow a scan.
-- Freshness: what was landed, 5 s behind receipt at most by default.
SELECT * FROM {raw}
