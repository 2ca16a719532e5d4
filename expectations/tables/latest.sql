-- A row: one message with few columns. `wrong` is filled in: a column for each check of single rows, true of a faulty one.
-- Key: source, sms_id. Units: none. Freshness: as messages.
SELECT
    coalesce(source, '(no source)') AS source, sms_id,
    message_key IS DISTINCT FROM source || ':' || sms_id AS is_misnamed, outcome, is_ended, device_id,
    first_seen_at, last_seen_at, contradicted, {wrong}
FROM messages
WHERE first_seen_at >= getvariable('since') OR first_seen_at IS NULL
