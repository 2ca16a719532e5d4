-- A row: what the reports of one message tell, as `streams.lifecycle` describes it; a second, separate implementation.
-- Key: source, sms_id.
-- Units: times are TIMESTAMPTZ. pending_at and the like are first reports in the attempt that decides.
-- Reads: reports (source, sms_id, status_id, device_id, channel_id, sent_at, told_at, recipient) and statuses
--   (status_id, rank, outcome, failure_class, is_end, is_failure). The order of reports, and how often each is there, do
--   not matter.
WITH observed AS (
    SELECT
        source, sms_id, status_id, device_id, channel_id, sent_at,
        min(told_at) AS first_at,
        max(told_at) AS last_at,
        min(recipient) AS recipient
    FROM reports
    GROUP BY ALL
),

placed AS MATERIALIZED (
    SELECT
        observed.*,
        rank,
        outcome,
        coalesce(is_end, false) AS is_end,
        coalesce(is_failure, false) AS is_failure,
        row_number() OVER (
            PARTITION BY source, sms_id
            ORDER BY
                first_at, coalesce(rank, -1), observed.status_id, coalesce(device_id, -1), coalesce(channel_id, -1),
                coalesce(epoch_ms(sent_at), -1)
        ) AS place
    FROM observed
    LEFT JOIN statuses ON statuses.status_id = observed.status_id
),

-- Only where something failed and a step is there twice can there be another attempt: few messages, and the dear windows.
retried AS (
    SELECT source, sms_id
    FROM placed
    WHERE rank IS NOT NULL
    GROUP BY source, sms_id
    HAVING bool_or(is_failure) AND count(*) FILTER (NOT is_end) > count(DISTINCT status_id) FILTER (NOT is_end)
),

-- A failure closes a stretch. A step in the stretch behind it that is as old as the failure, or older, begins another
-- attempt; the first such step of a stretch, for with it the failure is dealt with.
stretched AS (
    SELECT
        *,
        min(place) OVER (PARTITION BY source, sms_id, status_id) AS first_place,
        max(place) FILTER (is_failure) OVER (
            PARTITION BY source, sms_id ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS failed_place
    FROM placed
    SEMI JOIN retried USING (source, sms_id)
),

restarted AS (
    SELECT
        *,
        rank IS NOT NULL AND NOT is_end AND first_place < failed_place AS is_again,
        is_again AND count(*) FILTER (is_again) OVER (
            PARTITION BY source, sms_id, failed_place ORDER BY place
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) = 1 AS is_restart
    FROM stretched
),

attempted AS (
    SELECT
        * EXCLUDE (first_place, failed_place, is_again, is_restart),
        1 + count(*) FILTER (is_restart) OVER (
            PARTITION BY source, sms_id ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS attempt
    FROM restarted
    UNION ALL
    SELECT *, 1 FROM placed
    ANTI JOIN retried USING (source, sms_id)
),

judged AS (
    SELECT
        *,
        row_number() OVER (PARTITION BY source, sms_id, attempt, status_id ORDER BY place) = 1 AS is_first,
        coalesce(max(attempt) FILTER (is_end) OVER (PARTITION BY source, sms_id), 1) AS decisive,
        coalesce(max(rank) OVER (
            PARTITION BY source, sms_id, attempt ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) > rank, false) AS is_reordered,
        is_end AND min(outcome) FILTER (is_end) OVER (PARTITION BY source, sms_id, attempt) <> outcome AS is_contradiction
    FROM attempted
)

SELECT
    source,
    sms_id,
    min(first_at) AS first_seen_at,
    max(last_at) AS last_seen_at,
    min(recipient) AS recipient,
    arg_max(device_id, place) AS device_id,
    arg_max(channel_id, place) AS channel_id,
    max(attempt) AS attempts,
    bool_or(is_contradiction) AS contradicted,
    bool_or(is_reordered) AS reordered,
    bool_or(rank IS NULL AND status_id <> 5) AS unknown,
    bool_or(rank IS NULL AND status_id = 5) AS incoming,
    count(*) FILTER (last_at > first_at) AS repeated,
    arg_max(status_id, place) FILTER (is_end AND is_first AND attempt = decisive) AS winner,
    max(first_at) FILTER (is_end AND is_first AND attempt = decisive) AS ended_at,
    arg_max(status_id, rank) AS furthest,
    arg_max(status_id, place) AS newest,
    min(first_at) FILTER (attempt = decisive AND status_id = 1) AS pending_at,
    min(first_at) FILTER (attempt = decisive AND status_id = 2) AS accepted_at,
    min(first_at) FILTER (attempt = decisive AND status_id = 6) AS sent_at,
    min(first_at) FILTER (attempt = decisive AND status_id = 7) AS delivered_at,
    count(*) FILTER (attempt = decisive AND status_id = 8) > 0 AS undelivered,
    count(*) AS observed,
    list(
        {
            'status_id': status_id, 'device_id': device_id, 'channel_id': channel_id, 'sent_at': sent_at,
            'first_received_at': first_at, 'last_received_at': last_at
        }
        ORDER BY place
    ) AS observations
FROM judged
GROUP BY source, sms_id
