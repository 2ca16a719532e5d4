-- A row: the outgoing messages of one source whose first report was received on one day (UTC).
-- Key: source, day.
-- Units and freshness: as delivery_hourly. devices is the number of phones that sent them.
SELECT * EXCLUDE (rates), unnest(rates)
FROM (
    SELECT
        source,
        day,
        count(DISTINCT device_id) AS devices,
        sum(COLUMNS(count_columns()))::BIGINT AS '\0',
        rates(sum(attempted), sum(ended), sum(delivered), sum(open)) AS rates
    FROM delivery_hourly
    GROUP BY source, day
)
