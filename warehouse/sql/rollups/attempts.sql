-- A row: the attempts of one source, device and channel, of outgoing messages whose first report was received in one hour
--   (UTC).
-- Key: source, device_id, channel_id, hour.
-- Units: counts of attempts. last_seen_at is the last report of the attempts.
-- Reads: rows, as delivery.sql.
SELECT
    source, device_id, channel_id, day,
    time_bucket(INTERVAL 1 HOUR, first_seen_at) AS hour,
    sum(sign)::BIGINT AS attempted,
    coalesce(sum(sign) FILTER (is_ended), 0)::BIGINT AS ended,
    coalesce(sum(sign) FILTER (outcome = 'delivered'), 0)::BIGINT AS delivered,
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
    max(last_seen_at) AS last_seen_at
FROM attempts_of(rows)
GROUP BY source, device_id, channel_id, day, hour
