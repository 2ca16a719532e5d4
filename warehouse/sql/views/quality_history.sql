-- A row: what one run of `smspulse check` found of one expectation.
-- Key: checked_at, expectation.
-- Units: checked_at is TIMESTAMPTZ; date is its UTC date, to narrow a scan.
-- Freshness: of the last run; `smspulse up` checks every ten minutes by default.
SELECT * FROM {quality}
