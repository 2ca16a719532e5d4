-- A row: one message on which stream and log differ, the reason, and the fields that were compared.
-- Key: source, sms_id.
-- Units: what is `repaired` if the stream had lost its state of the message, `unsettled` if stream or sink had not got
--   to the last reports yet, else `different`.
-- Reads: result, stated, messages_files, raw_files, deadletters_files, the variables logged and expire_after, and the
--   partition as parameter 1.
WITH reached AS (
    SELECT
        greatest(
            max(last_seen_at),
            (SELECT max(received_at) FROM deadletters_files WHERE origin_partition = $1)
        ) - {settled_after} AS streamed_until,
        max(recorded_at) - {settled_after} AS clock,
        getvariable('logged').until - {settled_after} AS logged_until
    FROM messages_files WHERE "partition" = $1 AND {is_known}
)

SELECT
    coalesce(r.source, s.source) AS source,
    coalesce(r.sms_id, s.sms_id) AS sms_id,
    coalesce(r.first_seen_at, s.first_seen_at)::DATE AS day,
    CASE
        WHEN (coalesce(r.source, s.source), coalesce(r.sms_id, s.sms_id)) IN (
            SELECT (source, sms_id) FROM messages_files
            WHERE "partition" = $1 AND list_contains(flags, 'late_after_forgetting')
            UNION ALL
            SELECT (source, sms_id) FROM raw_files
            WHERE "partition" = $1 AND kind = 'status' AND {is_lost_webhook}
            UNION ALL
            SELECT (source, sms_id) FROM messages_files
            WHERE "partition" = $1 AND {is_lost_version}
        ) THEN 'repaired'
        WHEN coalesce(r.last_seen_at >= streamed_until, streamed_until IS NULL)
            OR coalesce(s.last_seen_at >= logged_until, logged_until IS NULL)
            OR (
                r.observations = s.observations AND (r.outcome = 'expired') <> (s.outcome = 'expired')
                AND r.last_seen_at + getvariable('expire_after') >= clock
            )
            THEN 'unsettled'
        ELSE 'different'
    END AS what,
    CASE
        WHEN r.source IS NULL THEN [{'field': 'message', 'streamed': 'there', 'rebuilt': NULL}]
        WHEN s.source IS NULL THEN [{'field': 'message', 'streamed': NULL, 'rebuilt': 'there'}]
        WHEN {has_other_version}
            THEN {facts} || [{'field': 'version', 'streamed': s.version::VARCHAR, 'rebuilt': r.version::VARCHAR}]
        ELSE {facts}
    END AS facts
FROM (FROM result WHERE is_differing) AS r
LEFT JOIN stated AS s ON s.position = r.position
CROSS JOIN reached
