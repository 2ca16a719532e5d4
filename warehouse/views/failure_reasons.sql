-- A row: the messages of one source and device that failed for one reason. Expired ones are not among them.
-- Key: source, device_id, failure_class, last_status_id.
-- Units: messages is a count, share its part of the failures of the same source and device, from 0 to 1.
-- Freshness: as messages.
SELECT
    source,
    device_id,
    failure_class,
    last_status_id,
    count(*) AS messages,
    count(*) / nullif(sum(count(*)) OVER (PARTITION BY source, device_id), 0) AS share
FROM messages
WHERE outcome IN ('undelivered', 'not_sent', 'not_permitted')
GROUP BY source, device_id, failure_class, last_status_id
