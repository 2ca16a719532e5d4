-- A table, CTE or view with source and device_id, once for each scope: its rows of devices, all as those of their source,
-- and all as those of the whole pipeline. device_id is 0 where the scope is wider, so that it can be joined.
CREATE TEMP MACRO by_scope(rows) AS TABLE
SELECT 'device' AS scope, * FROM query_table(rows) WHERE device_id IS NOT NULL
UNION ALL
SELECT 'source' AS scope, * REPLACE (0 AS device_id) FROM query_table(rows)
UNION ALL
SELECT 'pipeline' AS scope, * REPLACE ('*' AS source, 0 AS device_id) FROM query_table(rows)
