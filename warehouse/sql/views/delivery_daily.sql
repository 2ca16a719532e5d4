-- A row: the outgoing messages of one source whose first report was received on one day (UTC).
-- Key: source, day.
-- Units and freshness: as delivery_hourly. devices is the number of phones that sent them.
SELECT
    source,
    day,
    count(DISTINCT device_id) AS devices,
    sum(COLUMNS(count_columns()))::BIGINT AS '\0'
FROM delivery_hourly
GROUP BY source, day
