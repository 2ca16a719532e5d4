-- A row: the result of one expectation in one run of `smspulse check`.
-- Key: checked_at, expectation.
-- Units: checked_at is TIMESTAMPTZ. date is its UTC date, to narrow a scan.
-- Freshness: of the last run. `smspulse up` checks every ten minutes by default.
SELECT * FROM dataset('quality')
