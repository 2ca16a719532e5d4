-- A row: the measures of one scope: a partition, a source, an hour of a source, a device, or all.
-- Key: none; a column is null in the rows of scopes that it is not measured on, and where there was nothing to measure.
-- Units: *_s are seconds, shares are from 0 to 1, all else counts of rows, 0 where all is well.
-- Freshness: of the moment 'now'.
WITH copied AS (
    SELECT filename, count(*) - count(DISTINCT "offset") AS copies
    FROM version_files
    WHERE topic IS NOT NULL AND date >= getvariable('recent')::DATE
    GROUP BY filename
),

-- Messages from the log that neither stream nor lander is about to change.
ends AS (
    SELECT
        source, sms_id, date_trunc('hour', shown.first_seen_at) AS hour,
        CASE
            WHEN winner IS NULL THEN is_ended AND shown.outcome <> 'expired'
            ELSE shown.outcome IS DISTINCT FROM statuses.outcome
        END AS is_wrong
    FROM recomputed
    INNER JOIN shown USING (source, sms_id)
    LEFT JOIN statuses ON status_id = winner
    WHERE NOT is_moving AND recomputed.last_seen_at = shown.last_seen_at
),

hours AS (
    SELECT source, date_trunc('hour', first_seen_at) AS hour, count(*) AS messages
    FROM latest
    WHERE first_seen_at BETWEEN getvariable('now') - INTERVAL 29 DAY AND getvariable('now')
    GROUP BY ALL
),

complete AS (
    SELECT
        source,
        unnest(generate_series(
            date_trunc('hour', getvariable('recent')) + INTERVAL 1 HOUR,
            date_trunc('hour', getvariable('now')) - INTERVAL 1 HOUR, INTERVAL 1 HOUR
        )) AS hour
    FROM hours
    GROUP BY source
    HAVING min(hours.hour) < getvariable('now') - INTERVAL 14 DAY
),

usual AS (
    SELECT complete.source, complete.hour, median(messages) AS expected
    FROM complete
    INNER JOIN hours
        ON hours.source = complete.source
        AND list_contains([1, 2, 3, 4], datediff('hour', hours.hour, complete.hour) / 168)
    GROUP BY ALL
    HAVING count(*) >= 2
)

SELECT
    topic || ' partition ' || "partition" AS scope,
    sum(greatest(least(high, coalesce(before, low - 1)) - low + 1, 0) + coalesce(copies, 0)) AS messages_offsets_unique
FROM landed_ranges('version_files')
LEFT JOIN copied USING (filename)
GROUP BY topic, "partition"

UNION ALL BY NAME
SELECT
    raw_files.topic || ' partition ' || "partition" AS scope,
    epoch(getvariable('now')) - epoch(min(received_at)) AS messages_up_to_date
FROM raw_files
LEFT JOIN reached USING ("partition")
WHERE kind = 'status' AND (until IS NULL OR received_at > until)
GROUP BY raw_files.topic, "partition"

UNION ALL BY NAME
SELECT 'messages' AS scope, coalesce(sum(copies - 1), 0) AS messages_keys_unique
FROM (
    -- By the columns themselves: DuckDB's hash of similar short texts collides often.
    SELECT count(*) AS copies FROM latest GROUP BY source, sms_id HAVING copies > 1
    UNION ALL
    SELECT 2 FROM latest WHERE is_misnamed
)

UNION ALL BY NAME
SELECT DISTINCT source AS scope, coalesce(outcome, '(none)') AS messages_outcomes_known
FROM latest

UNION ALL BY NAME
SELECT
    source AS scope, count(*) AS messages_complete,
    min(source || ':' || sms_id, 5) AS messages_complete_rows
FROM (SELECT DISTINCT source, sms_id FROM log WHERE is_settled)
ANTI JOIN latest USING (source, sms_id)
GROUP BY source

UNION ALL BY NAME
SELECT
    source AS scope, count(*) AS messages_in_log,
    min(source || ':' || sms_id, 5) AS messages_in_log_rows
FROM latest
ANTI JOIN (SELECT source, sms_id FROM raw_files WHERE kind = 'status') USING (source, sms_id)
WHERE first_seen_at > greatest(getvariable('recent'), getvariable('covered'))
    AND last_seen_at < getvariable('logged') - getvariable('waiting')
GROUP BY source

UNION ALL BY NAME
SELECT
    source || ' ' || strftime(hour, '%Y-%m-%d %H:00') AS scope,
    count(*) FILTER (is_wrong) AS messages_outcome_matches_raw,
    min(source || ':' || sms_id, 5) FILTER (is_wrong) AS messages_outcome_matches_raw_rows
FROM ends
GROUP BY source, hour

UNION ALL BY NAME
SELECT
    source AS scope,
    count(*) AS messages_not_ahead,
    min(source || ':' || sms_id, 5) AS messages_not_ahead_rows
FROM latest
WHERE last_seen_at > getvariable('read_at') + getvariable('ahead')
GROUP BY source

UNION ALL BY NAME
SELECT
    source AS scope,
    avg(contradicted::INTEGER) AS messages_contradiction_share
FROM latest
WHERE first_seen_at > getvariable('recent')
GROUP BY source

UNION ALL BY NAME
SELECT
    usual.source || ' ' || strftime(hour, '%Y-%m-%d %H:00') AS scope,
    coalesce(messages, 0) / expected AS messages_volume
FROM usual
LEFT JOIN hours USING (source, hour)
WHERE expected >= getvariable('min_expected')

UNION ALL BY NAME
SELECT
    source AS scope,
    count(DISTINCT message_key) FILTER (field IS NOT NULL) AS messages_follow_from_log,
    min(message_key || ' ' || field, 5) AS messages_follow_from_log_rows
FROM (SELECT source, NULL AS message_key, NULL AS field FROM latest UNION ALL BY NAME FROM rebuild_differences)
GROUP BY source
