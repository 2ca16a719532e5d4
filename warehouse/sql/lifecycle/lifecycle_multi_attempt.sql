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

restarted AS (
    SELECT message, list(place) AS restarts
    FROM (
        SELECT message, min(place) AS place
        FROM (SELECT *, min(stretch) OVER (PARTITION BY message, status_id) < stretch AS is_again FROM stepped)
        WHERE is_again
        GROUP BY message, stretch
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
    SELECT message, attempt, status_id, outcome, min(place) AS place, min(first_at) AS first_at
    FROM attempted
    WHERE is_end
    GROUP BY ALL
),

-- The last of them is of the last attempt that has one: an attempt begins behind all that the one before it has.
decided AS (
    SELECT
        message,
        max(attempt) AS decisive,
        arg_max(status_id, place) AS winner,
        arg_max(first_at, place) AS ended_at,
        bool_or(is_contradiction) AS contradicted
    FROM (SELECT *, min(outcome) OVER (PARTITION BY message, attempt) <> outcome AS is_contradiction FROM ends)
    GROUP BY message
),

reported_state AS (
    SELECT
        message,
        min(first_at) AS first_seen_at,
        max(last_at) AS last_seen_at,
        arg_max(device_id, place) AS device_id,
        arg_max(channel_id, place) AS channel_id,
        max(attempt) AS attempts,
        coalesce(any_value(contradicted), false) AS contradicted,
        coalesce(bool_or(rank < rank_before AND NOT is_restart), false) AS reordered,
        bool_or(rank IS NULL AND status_id <> 5) AS unknown,
        bool_or(rank IS NULL AND status_id = 5) AS incoming,
        count(*) FILTER (last_at > first_at) AS repeated,
        any_value(winner) AS winner,
        any_value(ended_at) AS ended_at,
        arg_max(status_id, rank) AS furthest,
        arg_max(status_id, place) AS newest,
        min(first_at) FILTER (attempt = coalesce(decisive, 1) AND status_id = 1) AS pending_at,
        min(first_at) FILTER (attempt = coalesce(decisive, 1) AND status_id = 2) AS accepted_at,
        min(first_at) FILTER (attempt = coalesce(decisive, 1) AND status_id = 6) AS sent_at,
        min(first_at) FILTER (attempt = coalesce(decisive, 1) AND status_id = 7) AS delivered_at,
        count(*) FILTER (attempt = coalesce(decisive, 1) AND status_id = 8) > 0 AS undelivered,
        count(*) AS observed,
        list(place) AS places,
        list(observation(status_id, device_id, channel_id, sent_at, true, first_at, last_at)) AS listed
    FROM attempted
    LEFT JOIN decided USING (message)
    GROUP BY message
)

SELECT
    reported_state.* EXCLUDE (message, places, listed),
    source, sms_id, recipient,
    -- Sorted, they mostly come in their order, and stay in it without being sorted again.
    CASE
        WHEN places = range(1, observed + 1) THEN listed
        ELSE list_select(listed, list_grade_up(places))
    END AS observations
FROM reported_state
INNER JOIN message_summary ON message_summary.rowid = message
