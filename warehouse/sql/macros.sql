-- Macros that views, alert rules and checks share. `create_macro_statements` in views.py adds those that depend on the
-- data folder: folder_pattern, mixed_datasets, log_position, is_unmerged, is_same_message, counted_until and rollup.

-- Files of a dataset, as a pattern.
CREATE MACRO dataset_pattern(name) AS folder_pattern() || '/' || name || '/date=*/*.parquet';

-- Rows of a dataset, each with its file. The only partition key is the date of a file's folder. DuckDB's own hive
-- partitioning would take every key=value of a path for one, also above the data folder, and they would replace columns
-- of the same name. As with a partition key, DuckDB evaluates a condition on the date before it opens files.
-- The seed is the first file and has all columns. If other files may lack some, columns are matched by name. For that,
-- each query opens every file, which takes 0.1 ms a file and reference.
CREATE MACRO dataset_files(name) AS TABLE
SELECT *, right(parse_dirpath(filename), 10)::DATE AS date
FROM read_parquet(
    dataset_pattern(name),
    union_by_name = list_contains(mixed_datasets(), name), filename = true, hive_partitioning = false
);

-- Rows of a dataset.
CREATE MACRO dataset(name) AS TABLE SELECT * EXCLUDE (filename) FROM dataset_files(name);

-- Wilson's interval of a rate, by default of 95 %; z is the number of standard errors. Null without a whole. At the
-- ends, the bounds are exactly 0 and 1: rounding could exceed them.
CREATE MACRO wilson_low(part, whole, z := 1.959963984540054e0) AS CASE
    WHEN part > 0 THEN
        (part + z * z / 2 - z * sqrt(part * (whole - part) / nullif(whole, 0) + z * z / 4)) / (nullif(whole, 0) + z * z)
    ELSE 0.0 * nullif(whole, 0)
END;

CREATE MACRO wilson_high(part, whole, z := 1.959963984540054e0) AS CASE
    WHEN part < whole THEN
        (part + z * z / 2 + z * sqrt(part * (whole - part) / nullif(whole, 0) + z * z / 4)) / (nullif(whole, 0) + z * z)
    ELSE nullif(whole, 0) / nullif(whole, 0)
END;

-- Rates of counted messages, each with its interval. Make columns of them by `unnest` one query further out: of a call
-- it would repeat all rates for each column.
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
