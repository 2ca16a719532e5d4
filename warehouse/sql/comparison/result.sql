-- A row: one message of a partition as it follows from the log, and whether the stream has another version of it.
-- Key: source, sms_id; null if the log has no such message.
-- Units: is_ahead is true if the stream has reports that the log does not have yet. The files of the dataset raw are
--   landed next to those of messages.
-- Reads: earlier, streamed and rebuilt.
SELECT
    r.* EXCLUDE (content_hash),
    s.version AS streamed_version,
    s.recorded_at,
    s.position,
    coalesce(
        r.source IS NULL OR s.observed > len(r.observations) OR s.last_seen_at > r.last_seen_at, false
    ) AS is_ahead,
    CASE WHEN is_ahead THEN s.first_seen_at ELSE r.first_seen_at END::DATE AS day,
    -- An expiry is one fact more. The log does not show whether a message expired before a report revived it.
    s.version NOT BETWEEN r.version AND r.version + 1
    OR (s.outcome = 'expired' AND s.version = r.version) AS has_other_version,
    r.content_hash IS DISTINCT FROM s.content_hash OR has_other_version AS is_differing
FROM (
    SELECT *, hash({compared_columns}) AS content_hash
    FROM rebuilt ANTI JOIN earlier USING (source, sms_id)
) AS r
FULL JOIN (FROM streamed ANTI JOIN earlier USING (source, sms_id)) AS s
    ON r.source = s.source AND r.sms_id = s.sms_id
