-- Macros that views, alert rules and checks share. views.py adds those that depend on the data folder: dataset,
-- dataset_files, dataset_pattern, log_position, is_unmerged, is_same_message, counted_until and rollup.

-- Wilson's interval of a rate, by default of 95 %; z is the number of standard errors. Null without a whole. At the
-- ends, the bounds are exactly 0 and 1: rounding could exceed them.
CREATE MACRO wilson_low(part, whole, z := 1.959963984540054e0) AS CASE
    WHEN part > 0 THEN
        (part + z * z / 2 - z * sqrt(part * (whole - part) / whole + z * z / 4)) / (whole + z * z)
    WHEN whole > 0 THEN 0.0
END;

CREATE MACRO wilson_high(part, whole, z := 1.959963984540054e0) AS CASE
    WHEN part < whole THEN
        (part + z * z / 2 + z * sqrt(part * (whole - part) / whole + z * z / 4)) / (whole + z * z)
    WHEN whole > 0 THEN 1.0
END;

-- Rates of counted messages, each with its interval. `unnest` makes columns of them, one query further out: of a call it
-- would repeat all rates for each column. The arguments are columns: DuckDB would bind an aggregate once for each use.
CREATE MACRO rates(attempted, ended, delivered, open) AS {
    'delivered_per_attempted': delivered / nullif(attempted, 0),
    'delivered_per_attempted_low': wilson_low(delivered, attempted),
    'delivered_per_attempted_high': wilson_high(delivered, attempted),
    'delivered_per_ended': delivered / nullif(ended, 0),
    'delivered_per_ended_low': wilson_low(delivered, ended),
    'delivered_per_ended_high': wilson_high(delivered, ended),
    'open_share': open / nullif(attempted, 0),
    'open_share_low': wilson_low(open, attempted),
    'open_share_high': wilson_high(open, attempted)
};

-- Names of the columns in delivery_hourly that its sums have too, as a regular expression.
CREATE MACRO count_columns() AS
    '^(attempted|ended|delivered|undelivered|not_sent|not_permitted|expired'
    || '|generic|no_service|null_pdu|radio_off|other|open)$';
