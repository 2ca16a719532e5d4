-- A row: the measures of one source and hour of receipt (of a message: of its first report).
-- Key: none. Units: counts of records, 0 where all is well; *_rows name them; landed_accepted is a share from 0 to 1.
-- Freshness: of the moment. Records younger than $until may still be in transit.
WITH raw AS (
    SELECT DISTINCT source, date_trunc('hour', received_at) AS hour, unhex(replace(ingest_id, '-', '')) AS id
    FROM raw_webhooks
    WHERE received_at >= $since AND regexp_full_match(ingest_id, '[-0-9a-f]{36}')
),

hours AS (
    SELECT source, hour, count(*) AS accepted FROM accepted GROUP BY source, hour
),

missing AS (
    SELECT source, hour, lower(hex(id)) AS missing FROM accepted
    ANTI JOIN raw USING (id)
    ANTI JOIN spooled USING (id)
    ANTI JOIN waiting USING (id)
    -- A UUIDv7 begins with its time.
    WHERE ('0x' || hex(id[1:6]))::BIGINT < epoch_ms($until)
),

extra AS (
    SELECT source, hour, lower(hex(id)) AS extra
    FROM raw
    SEMI JOIN hours USING (source, hour)
    ANTI JOIN accepted USING (id)
    -- Of a younger one, the receipt may have been written after the receipts were read.
    WHERE ('0x' || hex(id[1:6]))::BIGINT < epoch_ms($until)
),

written AS (
    SELECT
        source, sms_id, coalesce(attempt, 1) AS attempt,
        max(written_at) AS written_at, arg_max(outcome, written_at) AS outcome,
        arg_max(is_ended, written_at) AS is_ended,
        count(*) FILTER (NOT correction) AS firsts
    FROM outcomes
    GROUP BY ALL
),

ends AS (
    SELECT
        attempts.source, date_trunc('hour', attempts.first_seen_at) AS hour, attempts.message_key,
        firsts > 1 OR CASE
            WHEN attempts.is_ended THEN written.outcome IS DISTINCT FROM attempts.outcome ELSE coalesce(written.is_ended, false)
        END AS is_wrong
    FROM attempts
    INNER JOIN messages USING (source, sms_id)
    LEFT JOIN written USING (source, sms_id, attempt)
    WHERE attempts.first_seen_at >= $outcomes_since AND recorded_at < $until
        -- Outcome and version are written in one transaction: of a later outcome, the version has not landed yet.
        AND coalesce(written_at <= recorded_at + INTERVAL 1 SECOND, true)
)

SELECT
    source || ' ' || strftime(hour, '%Y-%m-%d %H:00') AS scope,
    count(missing) AS reconciliation_accepted_landed,
    min(missing, 5) AS reconciliation_accepted_landed_rows,
    count(extra) / any_value(accepted) AS reconciliation_landed_accepted,
    min(extra, 5) AS reconciliation_landed_accepted_rows
FROM hours
LEFT JOIN (FROM missing UNION ALL BY NAME FROM extra) USING (source, hour)
GROUP BY source, hour

UNION ALL BY NAME
SELECT
    source || ' ' || strftime(received_at, '%Y-%m-%d %H:00') AS scope,
    count(*) AS reconciliation_kafka_landed,
    list(record ORDER BY received_at) AS reconciliation_kafka_landed_rows
FROM waiting
ANTI JOIN raw USING (id)
WHERE received_at < $until
GROUP BY scope

UNION ALL BY NAME
SELECT
    source || ' ' || strftime(hour, '%Y-%m-%d %H:00') AS scope,
    count(*) FILTER (is_wrong) AS outcomes_match_messages,
    list(DISTINCT message_key ORDER BY message_key) FILTER (is_wrong) AS outcomes_match_messages_rows
FROM ends
GROUP BY source, hour
ORDER BY scope
