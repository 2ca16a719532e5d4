-- A row: one message with a report, or a base file, from before the first day to be rebuilt. It is left as it is.
-- Key: source, sms_id.
-- Reads: raw_files, base_files, and the variables partition and start.
SELECT DISTINCT source, sms_id FROM raw_files
WHERE "partition" = getvariable('partition') AND kind = 'status' AND (
    received_at < getvariable('start')
    OR (received_at IS NULL AND recorded_at < getvariable('start'))
)
UNION
SELECT source, sms_id FROM base_files WHERE date < getvariable('start')::DATE
