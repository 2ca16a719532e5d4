-- A row: the reported state of one simple message, in the columns of lifecycle_multi_attempt.sql.
-- Key: source, sms_id.
-- Units: as lifecycle_multi_attempt.sql.
-- Reads: message_summary.
WITH listed AS (
    SELECT
        *,
        coalesce(pending_at > least(queued_at, accepted_at, handed_at, ended_at), false)
        OR coalesce(queued_at > least(accepted_at, handed_at, ended_at), false)
        OR coalesce(accepted_at > least(handed_at, ended_at), false)
        OR coalesce(handed_at > ended_at, false) AS reordered,
        list_filter(
            [
                {
                    'status_id': 1::INTEGER, 'device_id': device_id, 'channel_id': channel_id,
                    'sent_at': CASE WHEN steps & 1 > 0 THEN said_at END,
                    'first_received_at': pending_at, 'last_received_at': pending_until
                },
                {
                    'status_id': 3, 'device_id': device_id, 'channel_id': channel_id,
                    'sent_at': CASE WHEN steps & 2 > 0 THEN said_at END,
                    'first_received_at': queued_at, 'last_received_at': queued_until
                },
                {
                    'status_id': 2, 'device_id': device_id, 'channel_id': channel_id,
                    'sent_at': CASE WHEN steps & 4 > 0 THEN said_at END,
                    'first_received_at': accepted_at, 'last_received_at': accepted_until
                },
                {
                    'status_id': 6, 'device_id': device_id, 'channel_id': channel_id,
                    'sent_at': CASE WHEN steps & 8 > 0 THEN said_at END,
                    'first_received_at': handed_at, 'last_received_at': handed_until
                },
                {
                    'status_id': winner, 'device_id': device_id, 'channel_id': channel_id,
                    'sent_at': CASE WHEN steps & 16 > 0 THEN said_at END,
                    'first_received_at': ended_at, 'last_received_at': ended_until
                }
            ],
            lambda observation: observation.first_received_at IS NOT NULL
        ) AS documented
    FROM message_summary
    WHERE is_simple
)

SELECT
    source,
    sms_id,
    least(pending_at, queued_at, accepted_at, handed_at, ended_at) AS first_seen_at,
    greatest(pending_until, queued_until, accepted_until, handed_until, ended_until) AS last_seen_at,
    recipient,
    device_id,
    channel_id,
    1 AS attempts,
    false AS contradicted,
    reordered,
    false AS unknown,
    false AS incoming,
    coalesce(pending_until > pending_at, false)::INTEGER + coalesce(queued_until > queued_at, false)::INTEGER
    + coalesce(accepted_until > accepted_at, false)::INTEGER + coalesce(handed_until > handed_at, false)::INTEGER
    + coalesce(ended_until > ended_at, false)::INTEGER AS repeated,
    winner,
    ended_at,
    CASE
        WHEN handed_at IS NOT NULL THEN 6
        WHEN accepted_at IS NOT NULL THEN 2
        WHEN queued_at IS NOT NULL THEN 3
        WHEN pending_at IS NOT NULL THEN 1
    END AS furthest,
    NULL AS newest,
    pending_at,
    accepted_at,
    handed_at AS sent_at,
    CASE WHEN winner = 7 THEN ended_at END AS delivered_at,
    coalesce(winner = 8, false) AS undelivered,
    bit_count(steps) AS observed,
    -- Reports of one millisecond are in the documented order.
    CASE
        WHEN reordered THEN list_select(
            documented, list_grade_up([{'at': each.first_received_at, 'nth': nth} FOR each, nth IN documented])
        )
        ELSE documented
    END AS observations
FROM listed
