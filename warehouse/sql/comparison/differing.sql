-- A row: one message on which stream and log differ, the reason, and the fields that were compared.
-- Key: source, sms_id.
-- Units: what is `repaired` if the stream had lost its state of the message, `unsettled` if stream or sink had not got
--   to the last reports yet, else `different`.
-- Reads: result, stated, known_versions, messages_files, raw_files, deadletters_files, lost_from (topic, incarnation and
--   the offset from which on Kafka does not hold the landed records), and the variables compared (the partition),
--   logged, settled_after and expire_after.
WITH reached AS (
    SELECT
        greatest(
            max(last_seen_at),
            (SELECT max(received_at) FROM deadletters_files WHERE origin_partition = getvariable('compared'))
        ) - getvariable('settled_after') AS streamed_until,
        max(recorded_at) - getvariable('settled_after') AS clock,
        getvariable('logged').until - getvariable('settled_after') AS logged_until
    FROM known_versions WHERE "partition" = getvariable('compared')
),

-- With the records that Kafka lost, or with the copy of its state, the stream has lost its state of their messages.
lost AS (
    SELECT source, sms_id
    FROM raw_files INNER JOIN lost_from USING (topic)
    WHERE "partition" = getvariable('compared') AND kind = 'status'
        AND coalesce(raw_files.incarnation, '') = lost_from.incarnation AND "offset" >= first_offset
    UNION ALL
    SELECT source, sms_id
    FROM messages_files INNER JOIN lost_from USING (topic)
    WHERE "partition" = getvariable('compared')
        AND coalesce(messages_files.incarnation, '') = lost_from.incarnation AND "offset" >= first_offset
)

SELECT
    coalesce(r.source, s.source) AS source,
    coalesce(r.sms_id, s.sms_id) AS sms_id,
    coalesce(r.first_seen_at, s.first_seen_at)::DATE AS day,
    CASE
        WHEN (coalesce(r.source, s.source), coalesce(r.sms_id, s.sms_id)) IN (
            SELECT (source, sms_id) FROM messages_files
            WHERE "partition" = getvariable('compared') AND list_contains(flags, 'late_after_forgetting')
            UNION ALL
            SELECT (source, sms_id) FROM lost
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
        ELSE list_filter(
            [
                {facts},
                CASE WHEN has_other_version THEN fact('version', s.version, r.version) END
            ],
            lambda each: each IS NOT NULL
        )
    END AS facts
FROM (FROM result WHERE is_differing) AS r
LEFT JOIN stated AS s ON s.position = r.position
CROSS JOIN reached
