-- A row: one message with its lifecycle, derived from its reported state, in the columns of the dataset messages.
-- Key: source, sms_id.
-- Units: as messages. version counts the facts without an expiry: only the stream's clock knows of one.
-- Reads: reported_state, statuses, and the variables expire_after, an interval, and horizon, the time up to which the log is known.
WITH concluded AS (
    SELECT
        *,
        coalesce(winner, furthest, CASE WHEN incoming THEN 5 ELSE newest END) AS last_status_id,
        winner IS NULL AND (furthest IS NOT NULL OR NOT incoming)
        AND last_seen_at <= getvariable('horizon') - getvariable('expire_after') AS expired,
        sent_at IS NOT NULL OR delivered_at IS NOT NULL OR undelivered AS beyond_accepted
    FROM reported_state
)

SELECT
    source || ':' || sms_id AS message_key,
    source,
    sms_id,
    CASE WHEN expired THEN 'expired' ELSE coalesce(statuses.outcome, 'unknown') END AS outcome,
    failure_class,
    last_status_id,
    winner IS NOT NULL OR expired AS is_ended,
    device_id, channel_id, recipient, first_seen_at, last_seen_at,
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
                WHEN (pending_at IS NULL OR accepted_at IS NULL) AND (beyond_accepted OR accepted_at IS NOT NULL)
                    THEN 'queue_missing'
            END,
            CASE
                WHEN sent_at < accepted_at THEN 'device_backwards'
                WHEN (accepted_at IS NULL OR sent_at IS NULL) AND beyond_accepted THEN 'device_missing'
            END,
            CASE
                WHEN concluded.delivered_at < sent_at THEN 'network_backwards'
                WHEN sent_at IS NULL AND concluded.delivered_at IS NOT NULL THEN 'network_missing'
            END
        ],
        lambda flag: flag IS NOT NULL
    ) AS flags,
    seconds_between(pending_at, accepted_at) AS queue_s,
    seconds_between(accepted_at, sent_at) AS device_s,
    seconds_between(sent_at, concluded.delivered_at) AS network_s,
    (epoch_ms(concluded.ended_at) - epoch_ms(first_seen_at)) / 1000 AS total_s,
    observed + repeated + (recipient IS NOT NULL)::BIGINT AS version,
    observations,
    attempt_details
FROM concluded
LEFT JOIN statuses ON statuses.status_id = last_status_id
