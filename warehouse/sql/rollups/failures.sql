-- A row: the failed attempts of one source and device, of messages first reported on one day (UTC), for one reason.
-- Key: source, device_id, day, failure_class, last_status_id.
-- Units: messages is a count of attempts.
-- Reads: rows, as delivery.sql.
SELECT source, device_id, day, failure_class, last_status_id, sum(sign)::BIGINT AS messages
FROM attempts_of(rows)
WHERE outcome IN ('undelivered', 'not_sent', 'not_permitted')
GROUP BY source, device_id, day, failure_class, last_status_id
