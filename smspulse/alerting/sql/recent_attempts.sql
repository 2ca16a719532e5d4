-- A row: one attempt, or one message with status 5 alone, with a report of the last 24 hours.
SELECT
    source, message_key, device_id, channel_id, outcome, status_id, is_ended, first_seen_at, last_seen_at, ended_at,
    network_s
FROM attempts
WHERE
    day >= (getvariable('now') - INTERVAL 48 HOUR)::DATE
    AND first_seen_at <= getvariable('now')
    AND last_seen_at > getvariable('now') - INTERVAL 24 HOUR
UNION ALL
SELECT
    source, message_key, device_id, channel_id, outcome, last_status_id, is_ended, first_seen_at, last_seen_at, ended_at,
    network_s
FROM messages_by_day
WHERE
    day >= (getvariable('now') - INTERVAL 48 HOUR)::DATE
    AND outcome = 'incoming'
    AND first_seen_at <= getvariable('now')
    AND last_seen_at > getvariable('now') - INTERVAL 24 HOUR
