-- A row: what the reports of one plain message tell, in the columns of told.sql.
-- Key: source, sms_id.
-- Units: as told.sql.
-- Reads: digest.
SELECT
    source,
    sms_id,
    first_seen_at,
    last_seen_at,
    recipient,
    device_id,
    channel_id,
    1 AS attempts,
    false AS contradicted,
    false AS reordered,
    false AS unknown,
    false AS incoming,
    0 AS repeated,
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
    observed,
    list_filter(
        [
            {
                'status_id': 1::INTEGER, 'device_id': device_id, 'channel_id': channel_id, 'sent_at': said_at,
                'first_received_at': pending_at, 'last_received_at': pending_at
            },
            {
                'status_id': 3, 'device_id': device_id, 'channel_id': channel_id, 'sent_at': said_at,
                'first_received_at': queued_at, 'last_received_at': queued_at
            },
            {
                'status_id': 2, 'device_id': device_id, 'channel_id': channel_id, 'sent_at': said_at,
                'first_received_at': accepted_at, 'last_received_at': accepted_at
            },
            {
                'status_id': 6, 'device_id': device_id, 'channel_id': channel_id, 'sent_at': said_at,
                'first_received_at': handed_at, 'last_received_at': handed_at
            },
            {
                'status_id': winner, 'device_id': device_id, 'channel_id': channel_id, 'sent_at': said_at,
                'first_received_at': ended_at, 'last_received_at': ended_at
            }
        ],
        lambda observation: observation.first_received_at IS NOT NULL
    ) AS observations
FROM digest
WHERE is_plain
