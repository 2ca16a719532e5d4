-- A row: the measures of one scope: a partition of sms.raw, a source, or all.
-- Key: none; a column is null in the rows of scopes that it is not measured on, and where there was nothing to measure.
-- Units: *_s are seconds, shares are from 0 to 1, all else counts of rows, 0 where all is well.
-- Freshness: of the moment 'now'.
WITH files AS (
    FROM landed_ranges('raw_files')
),

-- Incarnations of the topic, with the time of their first records. Each run of the in-memory broker is another one.
incarnations AS (
    SELECT
        topic, incarnation, string_split(incarnation, '.')[1] AS topic_id, contains(incarnation, '.') AS is_cut,
        min(began_at) AS began_at
    FROM files
    WHERE incarnation IS NOT NULL AND NOT starts_with(incarnation, 'memory-')
    GROUP BY topic, incarnation
),

recent AS (
    SELECT
        coalesce(source, '(no source)') AS source, kind, flaws, status_id, sent_at, received_at,
        hash(sms_id, status_id, device_id, channel_id, sent_at) AS report
    FROM raw_files
    -- A webhook from the spool may be in Kafka twice.
    WHERE received_at > getvariable('recent') AND spooled IS NOT TRUE
)

SELECT
    topic || ' partition ' || "partition" AS scope,
    sum(
        greatest(low - coalesce(before, low - 1) - 1, 0) + greatest(high - low + 1 - records, 0)
        -- Without it, a duplicate could make up for a missing record.
        + (high - low + 1 = records AND total * 2 <> (low + high)::HUGEINT * records)::INTEGER
    ) AS raw_offsets_contiguous,
    sum(greatest(least(high, coalesce(before, low - 1)) - low + 1, 0) + greatest(records - (high - low + 1), 0)) AS raw_offsets_unique
FROM files
GROUP BY topic, "partition"

UNION ALL BY NAME
SELECT
    later.topic || ' since ' || strftime(later.began_at, '%Y-%m-%d %H:%M') AS scope,
    max(later.is_cut::INTEGER) AS raw_log_not_cut,
    max((NOT later.is_cut AND later.topic_id <> earlier.topic_id)::INTEGER) AS raw_topic_not_replaced
FROM incarnations AS later
INNER JOIN incarnations AS earlier ON earlier.topic = later.topic AND earlier.began_at < later.began_at
WHERE later.began_at > getvariable('recent')
GROUP BY later.topic, later.began_at

UNION ALL BY NAME
SELECT 'partition ' || "partition" AS scope, 1 AS raw_partitions_there
FROM reached
WHERE until > getvariable('covered') AND began_at < getvariable('now') - getvariable('waiting')
    AND "partition" NOT IN (SELECT "partition" FROM files)

UNION ALL BY NAME
SELECT 'raw' AS scope, coalesce(sum(copies - 1), 0) AS raw_ingest_ids_unique
FROM (
    SELECT count(*) FILTER (spooled IS NOT TRUE) AS copies
    -- A UUID needs half the memory of a text, and the hash of a text can collide. raw_ingest_ids_valid finds other ids.
    FROM (SELECT try_cast(ingest_id AS UUID) AS id, spooled FROM raw_files)
    WHERE id IS NOT NULL
    GROUP BY id
    HAVING copies > 1
)

UNION ALL BY NAME
SELECT
    'raw' AS scope,
    greatest(epoch(max(received_at)) - epoch(getvariable('read_at')), 0) AS raw_clock_not_ahead,
    greatest(epoch(getvariable('now')) - epoch(max(received_at)), 0) AS raw_fresh
FROM raw_files

UNION ALL BY NAME
SELECT
    source AS scope,
    avg((kind = 'unreadable')::INTEGER) AS raw_readable,
    avg((len(flaws) > 0)::INTEGER) FILTER (kind <> 'unreadable') AS raw_flawless,
    avg((NOT list_contains(getvariable('statuses'), status_id))::INTEGER) FILTER (kind = 'status') AS raw_codes_known,
    1 - count(DISTINCT report) FILTER (kind = 'status') / nullif(count(*) FILTER (kind = 'status'), 0)
        AS raw_reports_new,
    avg((sent_at > received_at + INTERVAL 10 MINUTE)::INTEGER) FILTER (kind = 'status') AS raw_sent_before_received
FROM recent
GROUP BY source

UNION ALL BY NAME
SELECT
    source AS scope,
    count(DISTINCT status_id) AS raw_no_new_status_codes
FROM recent
ANTI JOIN (
    SELECT coalesce(source, '(no source)') AS source, status_id FROM raw_files
    WHERE received_at <= getvariable('recent')
    GROUP BY ALL
) AS before USING (source, status_id)
WHERE kind = 'status' AND NOT list_contains(getvariable('statuses'), status_id)
    AND getvariable('covered') < getvariable('now') - INTERVAL 14 DAY
GROUP BY source
