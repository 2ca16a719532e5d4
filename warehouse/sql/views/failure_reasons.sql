-- A row: the attempts of one source and device that failed for one reason. Expired ones are not included.
-- Key: source, device_id, failure_class, last_status_id.
-- Units: attempts is a count, share its part of the failures of the same source and device, from 0 to 1.
-- Freshness: as delivery_hourly.
SELECT
    source, device_id, failure_class, last_status_id,
    sum(messages)::BIGINT AS attempts,
    sum(messages) / nullif(sum(sum(messages)) OVER (PARTITION BY source, device_id), 0) AS share
FROM (FROM rollup('failures') UNION ALL BY NAME FROM count_failures('changes'))
GROUP BY source, device_id, failure_class, last_status_id
HAVING sum(messages) > 0
