-- A row: the files of one log (a partition in one incarnation of its topic), or one file whose columns are not those of
-- its dataset. Key: scope. Units: counts of offsets and of columns, 0 where all is well. Freshness: of the moment.
-- {dataset} is filled in. A landed file has its first offset in its name, a merged one in its footer; both have
-- the next offset in their footer. The seed has the columns that this version of smspulse writes.
WITH footers AS MATERIALIZED (
    SELECT
        regexp_extract(
            file_name, 'date=([-0-9]+)/([^/+]+)[+]([0-9]+)(@[^/+]+)?[+]([0-9]+)(-[0-9a-z]+)?[.]parquet$',
            ['day', 'topic', 'partition', 'incarnation', 'start']
        ) AS name,
        max(decode(value)::BIGINT) FILTER (decode(key) = 'smspulse.start') AS start,
        max(decode(value)::BIGINT) FILTER (decode(key) = 'smspulse.next') AS next
    FROM parquet_kv_metadata(dataset_pattern('{dataset}'))
    WHERE decode(key) IN ('smspulse.start', 'smspulse.next')
    GROUP BY file_name
),

chain AS (
    SELECT
        name.topic || ' partition ' || name."partition" || name.incarnation AS scope,
        coalesce(start, name.start::BIGINT) AS first,
        lag(footers.next) OVER (PARTITION BY scope ORDER BY first, footers.next) AS expected
    FROM footers
    LEFT JOIN landed_offsets
        ON dataset = '{dataset}' AND landed_offsets."partition" = name."partition"::BIGINT
        AND landed_offsets.incarnation = ltrim(name.incarnation, '@')
    WHERE name.start <> '' AND name.day >= getvariable('since_day')::VARCHAR
        -- While the folders of dates are listed, files may land in a later one, and before them one in an earlier one.
        AND coalesce(first < landed_offsets.next, true)
),

-- Once: between two reads, a file could land that only the second has.
shapes AS MATERIALIZED (
    SELECT
        regexp_extract(file_name, 'date=[^/]+/[^/]+$') AS file,
        name || ' ' || type || ' ' || CASE
            WHEN converted_type LIKE 'TIMESTAMP%' THEN 'TIME'
            WHEN converted_type IN ('UTF8', 'LIST') THEN converted_type
            ELSE ''
        END AS shape
    FROM parquet_schema(dataset_pattern('{dataset}'))
    WHERE type IS NOT NULL
),

right_shapes AS (
    SELECT shape FROM shapes WHERE file = 'date=1970-01-01/seed.parquet'
),

newest AS (
    SELECT max(file) AS file FROM shapes WHERE file LIKE '%+%' GROUP BY regexp_extract(file, '[+][^+]+[+]')
),

wrong AS (
    SELECT file, shape FROM shapes ANTI JOIN right_shapes USING (shape)
    UNION ALL
    SELECT file, shape FROM (FROM newest CROSS JOIN right_shapes) ANTI JOIN shapes USING (file, shape)
)

SELECT scope, coalesce(sum(abs(first - expected)), 0) AS {dataset}_files_contiguous
FROM chain
GROUP BY scope

UNION ALL BY NAME
SELECT file AS scope, count(*) AS {dataset}_columns_exact
FROM wrong
GROUP BY file

UNION ALL BY NAME
SELECT '{dataset}' AS scope, 0 AS {dataset}_columns_exact
