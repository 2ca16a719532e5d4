-- A row: one device of one source, and its attempts of outgoing messages that were first reported within 24 hours.
-- Key: source, device_id. The device is null until a report names one.
-- Units: as attempts_hourly: counts of attempts, not of messages. top_failure is the most frequent reason of failure,
--   which can be `expired`. chance is the probability that a device as good as the source's others has so many attempts
--   that ended without delivery (Fisher's exact test, one-sided). is_failing holds if false_discovery_rate is at most
--   0.05: of all devices of a source for which it holds, at most 5 % are expected to be well (Benjamini-Hochberg). All
--   three are null without other devices.
-- Freshness: as messages, up to now.
WITH counted AS (
    SELECT
        source,
        device_id,
        count(*) AS attempted,
        count(*) FILTER (is_ended) AS ended,
        count(*) FILTER (outcome = 'delivered') AS delivered,
        count(*) FILTER (NOT is_ended) AS open,
        max(last_seen_at) AS last_seen_at,
        mode(CASE WHEN outcome = 'expired' THEN outcome ELSE failure_class END ORDER BY failure_class) AS top_failure
    FROM attempts
    WHERE first_seen_at > now() - INTERVAL 24 HOUR
    GROUP BY source, device_id
),

named AS (
    SELECT source, device_id, ended, delivered FROM counted WHERE device_id IS NOT NULL
)

SELECT counted.*, chance, false_discovery_rate, is_failing
FROM counted
LEFT JOIN judge_devices('named') AS judged USING (source, device_id)
