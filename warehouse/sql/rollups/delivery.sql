-- A row: the outgoing messages of one source, device and channel whose first report was received in one hour (UTC).
-- Key: source, device_id, channel_id, hour.
-- Units: counts of messages; queued, accepted and sent are those that got to that stage or to one behind it.
-- Reads: the table or view whose name is in rows: messages with their day, and with the sign with which each counts.
SELECT
    source, device_id, channel_id, day,
    time_bucket(INTERVAL 1 HOUR, first_seen_at) AS hour,
    sum(sign)::BIGINT AS attempted,
    coalesce(sum(sign) FILTER (is_ended), 0)::BIGINT AS ended,
    coalesce(sum(sign) FILTER (outcome = 'delivered'), 0)::BIGINT AS delivered,
    coalesce(sum(sign) FILTER (is_delivered_first(outcome, attempts, attempt_details)), 0)::BIGINT AS first_try_delivered,
    coalesce(sum(sign) FILTER (outcome = 'undelivered'), 0)::BIGINT AS undelivered,
    coalesce(sum(sign) FILTER (outcome = 'not_sent'), 0)::BIGINT AS not_sent,
    coalesce(sum(sign) FILTER (outcome = 'not_permitted'), 0)::BIGINT AS not_permitted,
    coalesce(sum(sign) FILTER (outcome = 'expired'), 0)::BIGINT AS expired,
    coalesce(sum(sign) FILTER (failure_class = 'generic'), 0)::BIGINT AS generic,
    coalesce(sum(sign) FILTER (failure_class = 'no_service'), 0)::BIGINT AS no_service,
    coalesce(sum(sign) FILTER (failure_class = 'null_pdu'), 0)::BIGINT AS null_pdu,
    coalesce(sum(sign) FILTER (failure_class = 'radio_off'), 0)::BIGINT AS radio_off,
    coalesce(sum(sign) FILTER (failure_class = 'other'), 0)::BIGINT AS other,
    coalesce(sum(sign) FILTER (NOT is_ended), 0)::BIGINT AS open,
    coalesce(sum(sign) FILTER (stage >= 2), 0)::BIGINT AS queued,
    coalesce(sum(sign) FILTER (stage >= 3), 0)::BIGINT AS accepted,
    coalesce(sum(sign) FILTER (stage >= 4), 0)::BIGINT AS sent
FROM (
    SELECT
        *,
        CASE
            WHEN outcome IN ('delivered', 'undelivered', 'sent') OR list_contains(status_ids, 6) THEN 4
            WHEN list_contains(status_ids, 2) THEN 3
            WHEN list_contains(status_ids, 3) THEN 2
            ELSE 1
        END AS stage
    FROM (SELECT *, [each.status_id FOR each IN observations] AS status_ids FROM query_table(rows))
    WHERE outcome <> 'incoming'
)
GROUP BY source, device_id, channel_id, day, hour
