-- A row: one file of a dataset, in the log (a partition in one incarnation of its topic) of its records.
-- Key: filename. Units: offsets; records is their count, total their sum, before the last offset of all earlier files.
-- Freshness: of the moment. `relation` names the view of the dataset's rows.
SELECT
    topic, incarnation, "partition", filename,
    min("offset") AS low, max("offset") AS high, count(*) AS records, sum("offset") AS total,
    min(recorded_at) AS began_at,
    max(max("offset")) OVER (
        PARTITION BY topic, incarnation, "partition" ORDER BY min("offset"), max("offset")
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS before
FROM query_table(relation)
WHERE topic IS NOT NULL
GROUP BY topic, incarnation, "partition", filename
