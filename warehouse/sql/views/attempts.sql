-- A row: one attempt to send an outgoing message. Everything that judges a phone or a SIM card counts these rows.
-- Key: source, sms_id, attempt. attempt is its number, from 1.
-- Units: times are TIMESTAMPTZ, *_s are seconds between reports as they were received, total_s from started_at to
--   ended_at. device_id and channel_id are those that reported its end, or else its newest ones. An attempt without an end
--   is open, also if its message has ended: the message is being tried again. Another attempt followed if is_followed.
--   first_seen_at is the first report of the message, and day its day (UTC): a query for certain days reads only their
--   files.
-- Freshness: as messages. Messages of releases up to 0.1 with several attempts have one row, the attempt that decided,
--   until `smspulse rebuild --all`.
SELECT
    day, source, sms_id, message_key,
    attempts AS attempt,
    device_id, channel_id, recipient,
    first_seen_at,
    first_seen_at AS started_at,
    last_seen_at, ended_at, is_ended, outcome, failure_class,
    last_status_id AS status_id,
    queue_s, device_s, network_s, total_s,
    false AS is_followed
FROM messages_by_day
WHERE attempt_details IS NULL AND outcome <> 'incoming'
UNION ALL
SELECT
    day, source, sms_id, message_key, attempt, each.device_id, each.channel_id, recipient, first_seen_at,
    each.started_at, each.last_seen_at, each.ended_at,
    each.ended_at IS NOT NULL AS is_ended,
    each.outcome, each.failure_class, each.status_id, each.queue_s, each.device_s, each.network_s,
    (epoch_ms(each.ended_at) - epoch_ms(each.started_at)) / 1000 AS total_s,
    attempt < attempts AS is_followed
FROM (
    SELECT
        day, source, sms_id, message_key, recipient, attempts, first_seen_at,
        unnest(attempt_details) AS each,
        generate_subscripts(attempt_details, 1) AS attempt
    FROM messages_by_day
    WHERE attempt_details IS NOT NULL
)
