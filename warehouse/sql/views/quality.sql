-- A row: one expectation, with the result of its last check. A critical one that failed is an alert:
--   FROM quality WHERE NOT success AND severity = 'critical'
-- Key: expectation.
-- Units: checked_at and failing_since are TIMESTAMPTZ.
-- Freshness: of its last check. `smspulse up` checks every ten minutes by default.
WITH last AS (
    SELECT expectation, max(checked_at) AS checked_at, max(checked_at) FILTER (success) AS held_at
    FROM dataset('quality')
    GROUP BY expectation
),

failing AS (
    SELECT expectation, min(quality.checked_at) AS failing_since
    FROM dataset('quality') AS quality
    INNER JOIN last USING (expectation)
    WHERE NOT success AND quality.checked_at > coalesce(held_at, '-infinity')
    GROUP BY expectation
)

SELECT quality.* EXCLUDE (date), failing_since
FROM dataset('quality') AS quality
INNER JOIN last USING (expectation, checked_at)
LEFT JOIN failing USING (expectation)
