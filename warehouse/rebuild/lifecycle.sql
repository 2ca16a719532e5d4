-- A row: one message, as `streams.lifecycle` describes it; written a second time, so that each can be held against the other.
-- Key: source, sms_id.
-- Units: as the dataset messages. version counts the facts without an expiry: only the stream's clock knows of one.
-- Reads: reports (source, sms_id, status_id, device_id, channel_id, sent_at, told_at, recipient) and statuses
--   (status_id, rank, outcome, failure_class, is_end, is_failure); the variables expire_after, an interval, and horizon,
--   the time up to which the log is known. The order of reports, and how often each is there, do not matter.
WITH observed AS (
    SELECT
        source, sms_id, status_id, device_id, channel_id, sent_at,
        min(told_at) AS first_at,
        max(told_at) AS last_at,
        min(recipient) AS recipient
    FROM reports
    GROUP BY ALL
),

placed AS (
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
        *,
        1 + count(*) FILTER (is_restart) OVER (
            PARTITION BY source, sms_id ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS attempt
    FROM restarted
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
),

told AS (
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
),

concluded AS (
    SELECT
        *,
        coalesce(winner, furthest, CASE WHEN incoming THEN 5 ELSE newest END) AS last_status_id,
        winner IS NULL AND (furthest IS NOT NULL OR NOT incoming)
        AND last_seen_at + getvariable('expire_after') <= getvariable('horizon') AS expired,
        sent_at IS NOT NULL OR delivered_at IS NOT NULL OR undelivered AS beyond_accepted
    FROM told
)

SELECT
    source || ':' || sms_id AS message_key,
    source,
    sms_id,
    CASE WHEN expired THEN 'expired' ELSE coalesce(statuses.outcome, 'unknown') END AS outcome,
    failure_class,
    last_status_id,
    winner IS NOT NULL OR expired AS is_ended,
    device_id,
    channel_id,
    recipient,
    first_seen_at,
    last_seen_at,
    CASE WHEN expired THEN last_seen_at + getvariable('expire_after') ELSE ended_at END AS ended_at,
    CASE WHEN statuses.outcome = 'delivered' THEN ended_at END AS delivered_at,
    attempts::INTEGER AS attempts,
    contradicted,
    list_filter(
        [
            CASE WHEN repeated > 0 THEN 'duplicated' END,
            CASE WHEN reordered THEN 'reordered' END,
            CASE WHEN unknown THEN 'unknown_status' END,
            CASE
                WHEN accepted_at < pending_at THEN 'queue_backwards'
                WHEN accepted_at - pending_at IS NULL AND (beyond_accepted OR accepted_at IS NOT NULL) THEN 'queue_missing'
            END,
            CASE
                WHEN sent_at < accepted_at THEN 'device_backwards'
                WHEN sent_at - accepted_at IS NULL AND beyond_accepted THEN 'device_missing'
            END,
            CASE
                WHEN concluded.delivered_at < sent_at THEN 'network_backwards'
                WHEN sent_at IS NULL AND concluded.delivered_at IS NOT NULL THEN 'network_missing'
            END
        ],
        lambda flag: flag IS NOT NULL
    ) AS flags,
    CASE WHEN pending_at <= accepted_at THEN (epoch_ms(accepted_at) - epoch_ms(pending_at)) / 1000 END AS queue_s,
    CASE WHEN accepted_at <= sent_at THEN (epoch_ms(sent_at) - epoch_ms(accepted_at)) / 1000 END AS device_s,
    CASE
        WHEN sent_at <= concluded.delivered_at THEN (epoch_ms(concluded.delivered_at) - epoch_ms(sent_at)) / 1000
    END AS network_s,
    (epoch_ms(concluded.ended_at) - epoch_ms(first_seen_at)) / 1000 AS total_s,
    observed + repeated + (recipient IS NOT NULL)::BIGINT AS version,
    observations
FROM concluded
LEFT JOIN statuses ON statuses.status_id = last_status_id
