-- A row: the messages of one source and device, first reported on one day (UTC), that failed for one reason.
-- Key: source, device_id, day, failure_class, last_status_id.
-- Units: messages is a count.
-- Reads: rows, as delivery.sql.
SELECT source, device_id, day, failure_class, last_status_id, sum(sign)::BIGINT AS messages
FROM query_table(rows)
WHERE outcome IN ('undelivered', 'not_sent', 'not_permitted')
GROUP BY source, device_id, day, failure_class, last_status_id
