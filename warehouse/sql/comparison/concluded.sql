-- A row: one message of a partition as it is written to base files, with its day.
-- Key: source, sms_id.
-- Reads: result and stated.
SELECT {columns}, greatest(version, streamed_version) AS version, recorded_at, day
FROM result WHERE NOT is_ahead
UNION ALL
SELECT {columns}, version, recorded_at, day
FROM stated INNER JOIN (SELECT position, day FROM result WHERE is_ahead) AS ahead USING (position)
