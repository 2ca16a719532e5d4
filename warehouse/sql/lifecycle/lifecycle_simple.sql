-- A row: the reported state of one simple message, in the columns of lifecycle_multi_attempt.sql.
-- Key: source, sms_id.
-- Units: as lifecycle_multi_attempt.sql.
-- Reads: message_summary, and the macro observation.
WITH listed AS (
    SELECT
        *,
        coalesce(pending_at > least(queued_at, accepted_at, handed_at, ended_at), false)
        OR coalesce(queued_at > least(accepted_at, handed_at, ended_at), false)
        OR coalesce(accepted_at > least(handed_at, ended_at), false)
        OR coalesce(handed_at > ended_at, false) AS reordered,
        list_filter(
            [
                observation(1::INTEGER, device_id, channel_id, said_at, steps & 1 > 0, pending_at, pending_until),
                observation(3, device_id, channel_id, said_at, steps & 2 > 0, queued_at, queued_until),
                observation(2, device_id, channel_id, said_at, steps & 4 > 0, accepted_at, accepted_until),
                observation(6, device_id, channel_id, said_at, steps & 8 > 0, handed_at, handed_until),
                observation(winner, device_id, channel_id, said_at, steps & 16 > 0, ended_at, ended_until)
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
    recipient, device_id, channel_id,
    1 AS attempts,
    false AS contradicted,
    reordered,
    false AS unknown,
    false AS incoming,
    coalesce(pending_until > pending_at, false)::INTEGER + coalesce(queued_until > queued_at, false)::INTEGER
    + coalesce(accepted_until > accepted_at, false)::INTEGER + coalesce(handed_until > handed_at, false)::INTEGER
    + coalesce(ended_until > ended_at, false)::INTEGER AS repeated,
    winner, ended_at, CASE
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
    NULL AS attempt_details,
    -- Reports of one millisecond are in the documented order.
    CASE
        WHEN reordered THEN list_select(
            documented, list_grade_up([{'at': each.first_received_at, 'nth': nth} FOR each, nth IN documented])
        )
        ELSE documented
    END AS observations
FROM listed
