-- A row: one recent status report of sms.raw without a dead letter. The lifecycle in SQL reads it.
-- Key: none. Units: none. Freshness: of the moment; is_settled: the stream must have processed it by now.
SELECT
    source, sms_id, status_id, device_id, channel_id, sent_at, address AS recipient,
    coalesce(received_at, recorded_at) AS reported_at,
    coalesce(reported_at < settled_until - getvariable('waiting'), false) AS is_settled
FROM raw_files
LEFT JOIN reached USING ("partition")
WHERE kind = 'status' AND source IS NOT NULL AND reported_at >= getvariable('counted')
    -- DuckDB skips files by this column.
    AND recorded_at >= getvariable('counted') - INTERVAL 1 DAY
    AND ("partition", "offset", coalesce(ingest_id, '')) NOT IN (
        SELECT (origin_partition, origin_offset, coalesce(ingest_id, '')) FROM deadletter_files
        WHERE origin_partition IS NOT NULL AND origin_offset IS NOT NULL
    )
