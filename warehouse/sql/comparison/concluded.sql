-- A row: one message of a partition as it is written to base files, with its day.
-- Key: source, sms_id.
-- Reads: result and stated.
SELECT
    * EXCLUDE (streamed_version, position, is_ahead, has_other_version, is_differing)
    REPLACE (greatest(version, streamed_version) AS version)
FROM result
WHERE NOT is_ahead
UNION ALL BY NAME
SELECT
    stated.* EXCLUDE (
        is_forgotten, topic, "partition", "offset", incarnation, filename, date, position
    ),
    day
FROM stated
INNER JOIN (SELECT position, day FROM result WHERE is_ahead) AS ahead USING (position)
