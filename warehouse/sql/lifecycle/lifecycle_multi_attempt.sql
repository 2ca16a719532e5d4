-- A row: the reported state of one message, as `streams.lifecycle` describes it; a second, separate implementation.
-- Key: source, sms_id.
-- Units: times are TIMESTAMPTZ. pending_at and the like are first reports in the attempt that decides.
-- Reads: message_summary, reports (message, status_id, device_id, channel_id, sent_at, reported_at), where message is a
--   row of message_summary, statuses (status_id, rank, outcome, failure_class, is_end, is_failure), and the macro
--   observation. The order of reports, and how often each is there, do not matter.
WITH observed AS (
    SELECT
        message, status_id, device_id, channel_id, sent_at,
        min(reported_at) AS first_at,
        max(reported_at) AS last_at
    FROM reports
    GROUP BY ALL
),

placed AS MATERIALIZED (
    SELECT
        observed.*,
        rank,
        outcome,
        coalesce(is_end, false) AS is_end,
        row_number() OVER story AS place,
        lag(rank IGNORE NULLS) OVER story AS rank_before,
        last_value(device_id IGNORE NULLS) OVER (story ROWS UNBOUNDED PRECEDING) AS known_device_id,
        last_value(channel_id IGNORE NULLS) OVER (story ROWS UNBOUNDED PRECEDING) AS known_channel_id,
        count(*) FILTER (is_end) OVER (story ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ends_before,
        count(*) FILTER (is_failure) OVER (story ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS stretch
    FROM observed
    LEFT JOIN statuses ON statuses.status_id = observed.status_id
    WINDOW story AS (
        PARTITION BY message
        ORDER BY
            first_at, coalesce(rank, -1), observed.status_id, coalesce(device_id, -1), coalesce(channel_id, -1),
            coalesce(epoch_ms(sent_at), -1)
    )
),

-- A failure closes a stretch. A step that an earlier stretch had too begins another attempt; the first such step of a
-- stretch, for with it the failure is dealt with.
stepped AS (
    SELECT message, status_id, stretch, min(place) AS place
    FROM placed
    SEMI JOIN (FROM placed WHERE stretch > 0 AND NOT is_end) AS retried USING (message)
    WHERE rank IS NOT NULL AND NOT is_end
    GROUP BY ALL
),

repeated AS (
    SELECT message, stretch, min(place) AS place
    FROM (SELECT *, min(stretch) OVER (PARTITION BY message, status_id) < stretch AS is_again FROM stepped)
    WHERE is_again
    GROUP BY message, stretch
),

-- So does a report from elsewhere: the first one after an end.
elsewhere AS (
    SELECT message, later.stretch, later.ends_before, min(later.place) AS place
    FROM placed AS later
    INNER JOIN placed AS ended USING (message)
    WHERE
        later.rank IS NOT NULL AND ended.is_end AND ended.ends_before + 1 = later.ends_before
        AND (later.device_id <> ended.known_device_id OR later.channel_id <> ended.known_channel_id)
    GROUP BY ALL
),

-- Of both, the first one counts: until the next failure if it is from elsewhere, until the next end if it is a step.
repeated_first AS (
    SELECT repeated.message, repeated.place, ends_before
    FROM repeated
    ANTI JOIN elsewhere
        ON elsewhere.message = repeated.message AND elsewhere.stretch = repeated.stretch AND elsewhere.place < repeated.place
    INNER JOIN placed ON placed.message = repeated.message AND placed.place = repeated.place
),

restarted AS (
    SELECT message, list_sort(list(DISTINCT place)) AS restarts
    FROM (
        SELECT message, place FROM repeated_first
        UNION ALL
        SELECT message, place
        FROM elsewhere
        ANTI JOIN repeated_first
            ON repeated_first.message = elsewhere.message AND repeated_first.ends_before = elsewhere.ends_before
            AND repeated_first.place < elsewhere.place
    )
    GROUP BY message
),

attempted AS MATERIALIZED (
    SELECT
        placed.*,
        coalesce(list_contains(restarts, place), false) AS is_restart,
        1 + coalesce(len([restart FOR restart IN restarts IF restart <= place]), 0) AS attempt
    FROM placed
    LEFT JOIN restarted USING (message)
),

ends AS (
    SELECT
        message, attempt, status_id, outcome,
        min(place) AS place,
        min(first_at) AS first_at,
        first(device_id ORDER BY place) AS device_id,
        first(channel_id ORDER BY place) AS channel_id
    FROM attempted
    WHERE is_end
    GROUP BY ALL
),

-- Of several ends of an attempt, the one whose first report came last.
ended AS (
    SELECT
        message, attempt,
        arg_max(status_id, place) AS status_id,
        max(first_at) AS ended_at,
        last(device_id ORDER BY place) AS device_id,
        last(channel_id ORDER BY place) AS channel_id,
        min(outcome) <> max(outcome) AS contradicted
    FROM ends
    GROUP BY ALL
),

tried AS MATERIALIZED (
    SELECT
        attempted.message,
        attempted.attempt,
        coalesce(any_value(ended.device_id), arg_max(attempted.device_id, place)) AS device_id,
        coalesce(any_value(ended.channel_id), arg_max(attempted.channel_id, place)) AS channel_id,
        min(first_at) AS started_at,
        max(last_at) AS last_seen_at,
        any_value(ended.ended_at) AS ended_at,
        any_value(ended.status_id) AS winner,
        arg_max(attempted.status_id, rank) AS furthest,
        any_value(contradicted) AS contradicted,
        min(first_at) FILTER (attempted.status_id = 1) AS pending_at,
        min(first_at) FILTER (attempted.status_id = 2) AS accepted_at,
        min(first_at) FILTER (attempted.status_id = 6) AS sent_at,
        min(first_at) FILTER (attempted.status_id = 7) AS delivered_at,
        count(*) FILTER (attempted.status_id = 8) > 0 AS undelivered
    FROM attempted
    LEFT JOIN ended USING (message, attempt)
    GROUP BY attempted.message, attempted.attempt
),

-- An attempt begins behind all that the one before it has. So the last one with an end decides.
decided AS (
    SELECT
        message,
        coalesce(max(attempt) FILTER (winner IS NOT NULL), 1) AS decisive,
        coalesce(bool_or(contradicted), false) AS contradicted,
        CASE
            WHEN count(*) > 1 THEN list(
                {
                    'device_id': device_id, 'channel_id': channel_id, 'started_at': started_at,
                    'last_seen_at': last_seen_at, 'ended_at': ended_at,
                    'outcome': outcome, 'failure_class': failure_class, 'status_id': statuses.status_id,
                    'queue_s': seconds_between(pending_at, accepted_at),
                    'device_s': seconds_between(accepted_at, sent_at),
                    'network_s': seconds_between(sent_at, delivered_at)
                } ORDER BY attempt
            )
        END AS attempt_details
    FROM tried
    LEFT JOIN statuses ON statuses.status_id = coalesce(winner, furthest)
    GROUP BY message
),

reported_state AS (
    SELECT
        message,
        min(first_at) AS first_seen_at,
        max(last_at) AS last_seen_at,
        max(attempt) AS attempts,
        coalesce(bool_or(rank < rank_before AND NOT is_restart), false) AS reordered,
        bool_or(rank IS NULL AND status_id <> 5) AS unknown,
        bool_or(rank IS NULL AND status_id = 5) AS incoming,
        count(*) FILTER (last_at > first_at) AS repeated,
        arg_max(status_id, place) AS newest,
        count(*) AS observed,
        list(place) AS places,
        list(observation(status_id, device_id, channel_id, sent_at, true, first_at, last_at)) AS listed
    FROM attempted
    GROUP BY message
)

SELECT
    reported_state.* EXCLUDE (message, places, listed),
    tried.* EXCLUDE (message, attempt, started_at, last_seen_at, contradicted),
    decided.contradicted, decided.attempt_details,
    source, sms_id, recipient,
    -- Sorted, they mostly come in their order, and stay in it without being sorted again.
    CASE
        WHEN places = range(1, observed + 1) THEN listed
        ELSE list_select(listed, list_grade_up(places))
    END AS observations
FROM reported_state
INNER JOIN decided ON decided.message = reported_state.message
INNER JOIN tried ON tried.message = decided.message AND tried.attempt = decisive
INNER JOIN message_summary ON message_summary.rowid = reported_state.message
