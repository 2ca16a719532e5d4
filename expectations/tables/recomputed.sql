-- A row: one recent message, derived from `log`. is_moving: the stream may not have processed all of its reports yet.
-- Key: source, sms_id. Units: none. Freshness: as `log`.
SELECT
    source, sms_id, first_seen_at, last_seen_at, winner, furthest, incoming,
    (source, sms_id) IN (SELECT (source, sms_id) FROM log WHERE NOT is_settled) AS is_moving
FROM reported_state
ANTI JOIN (FROM shown WHERE first_seen_at < getvariable('counted')) USING (source, sms_id)
