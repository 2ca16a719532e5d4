-- A row: what was measured on one scope: a partition of a topic, a source, or a dataset as a whole.
-- Key: none; a column is null in the rows of scopes that it is not measured on, and where there was nothing to measure.
-- Units: *_s are seconds, shares and rates are from 0 to 1, all else counts of rows, 0 where all is well.
-- Freshness: of the moment $now.
-- Parameters: $now, $recent (an interval), $raw and $versions (globs of `raw` and `messages`), $ends (outcomes).
WITH versions AS MATERIALIZED (
    -- The view `messages` shows one version of each message, which would hide one that was landed twice.
    SELECT topic, "partition", "offset", last_seen_at
    FROM read_parquet($versions, union_by_name = true)
),

latest AS MATERIALIZED (
    SELECT
        coalesce(source, '(no source)') AS source, sms_id, message_key, outcome, is_ended, first_seen_at, last_seen_at,
        ended_at, delivered_at, queue_s, device_s, network_s, total_s, len(observations) AS observed
    FROM messages
),

reached AS (
    SELECT "partition", max(reached_at) AS until
    FROM (
        SELECT "partition", last_seen_at AS reached_at FROM versions
        UNION ALL
        SELECT origin_partition, received_at FROM deadletters
    )
    GROUP BY "partition"
)

SELECT
    topic || ' partition ' || "partition" AS scope,
    max("offset") - min("offset") + 1 - count(DISTINCT "offset") AS raw_offsets_missing,
    count(*) - count(DISTINCT "offset") AS raw_offsets_repeated
-- The view `raw_webhooks` leaves out copies of webhooks, which have offsets too.
FROM read_parquet($raw, union_by_name = true)
GROUP BY topic, "partition"

UNION ALL BY NAME
SELECT
    'raw' AS scope,
    count(ingest_id) - count(DISTINCT ingest_id) AS ingest_ids_repeated,
    epoch($now) - epoch(max(received_at)) AS quiet_s
FROM raw_webhooks

UNION ALL BY NAME
SELECT
    coalesce(source, '(no source)') AS scope,
    count(*) FILTER (source IS NULL OR ingest_id IS NULL OR received_at IS NULL) AS receipts_incomplete,
    avg((kind = 'unreadable')::INT) FILTER (received_at > $now - $recent) AS unreadable_share
FROM raw_webhooks
GROUP BY source

UNION ALL BY NAME
SELECT
    topic || ' partition ' || "partition" AS scope,
    epoch($now) - epoch(min(received_at)) AS waiting_s
FROM raw_webhooks
LEFT JOIN reached USING ("partition")
WHERE kind = 'status' AND (until IS NULL OR received_at > until)
GROUP BY topic, "partition"

UNION ALL BY NAME
SELECT
    topic || ' partition ' || "partition" AS scope,
    count(*) - count(DISTINCT "offset") AS versions_repeated
FROM versions
GROUP BY topic, "partition"

UNION ALL BY NAME
SELECT
    'messages' AS scope,
    count(*) - least(count(DISTINCT message_key), count(DISTINCT (source, sms_id))) AS keys_repeated
FROM latest

UNION ALL BY NAME
SELECT DISTINCT
    source AS scope,
    coalesce(outcome, '(none)') AS outcome
FROM latest

UNION ALL BY NAME
SELECT
    source AS scope,
    count(*) FILTER (
        is_ended IS DISTINCT FROM list_contains($ends, outcome) OR is_ended IS DISTINCT FROM (ended_at IS NOT NULL)
    ) AS ends_unclear,
    least(min(queue_s), min(device_s), min(network_s), min(total_s)) AS lowest_latency_s,
    count(*) FILTER (
        least(last_seen_at, ended_at, delivered_at) < first_seen_at
        -- An expiry is a time without a report, so it may lie after the last one.
        OR (ended_at > last_seen_at AND outcome <> 'expired')
    ) AS times_backwards,
    count(*) FILTER (coalesce(observed, 0) = 0) AS without_observation
FROM latest
GROUP BY source

UNION ALL BY NAME
SELECT
    coalesce(source, '(no source)') AS scope,
    unnest([
        min(least(delivered_per_attempted, delivered_per_ended, open_share)),
        max(greatest(delivered_per_attempted, delivered_per_ended, open_share))
    ]) AS rate
FROM delivery_by_device
GROUP BY source

UNION ALL BY NAME
SELECT
    coalesce(source, '(no source)') AS scope,
    count(DISTINCT message_key) FILTER (field IS NOT NULL) AS messages_differing
FROM (SELECT source, NULL AS message_key, NULL AS field FROM latest UNION ALL BY NAME FROM rebuild_differences)
GROUP BY source
