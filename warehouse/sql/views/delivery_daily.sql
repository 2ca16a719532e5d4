-- A row: the outgoing messages of one source whose first report was received on one day (UTC).
-- Key: source, day.
-- Units and freshness: as delivery_hourly; devices is how many phones they went through.
SELECT *, {rates}
FROM (
    SELECT
        source,
        day,
        count(DISTINCT device_id) AS devices,
        {sums}
    FROM delivery_hourly
    GROUP BY source, day
)
