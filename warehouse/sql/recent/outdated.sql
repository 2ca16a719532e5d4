-- A row: one message with newer versions that a base file holds, and keeps.
-- Key: source, sms_id.
-- Reads: live, and the variable merged_files: the recent base files that are merged.
SELECT base.source, base.sms_id, base.version
FROM dataset_files('base') AS base
INNER JOIN live ON live.source = base.source AND live.sms_id = base.sms_id
WHERE NOT list_contains(getvariable('merged_files'), base.filename)
