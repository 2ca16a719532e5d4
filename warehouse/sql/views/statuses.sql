-- A row: one status that the gateway documents, or to which SMSPULSE_STREAM_STATUS_MEANINGS gives a meaning.
-- Key: status_id.
-- Units: stage is the place of the status in the documented order: pending, queued, accepted, sent, or end; null if it is
--   no stage of an outgoing message. outcome is that of a message whose deciding report has this status.
-- Freshness: of the release and the setting.
SELECT
    status_id, name,
    ['pending', 'queued', 'accepted', 'sent', 'end'][rank + 1] AS stage,
    outcome, failure_class, likely_cause, what_to_do, retry, is_documented
FROM dataset('status_codes')
