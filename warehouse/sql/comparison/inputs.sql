-- Statements that create what all partitions read.
-- Reads: the macros of warehouse/sql/macros.sql, raw_position and message_position, and the variable longest_address.
CREATE TEMP VIEW raw_files AS SELECT *, raw_position(incarnation, "offset") AS position FROM dataset('raw');

-- Earlier releases counted an address of any length as a fact of its message.
CREATE TEMP VIEW messages_files AS
SELECT
    * REPLACE (
        CASE WHEN length(recipient) <= getvariable('longest_address') THEN recipient END AS recipient,
        version - coalesce(length(recipient) > getvariable('longest_address'), false)::BIGINT AS version
    ),
    message_position(incarnation, "offset") AS position
FROM dataset_files('messages');

CREATE TEMP VIEW deadletters_files AS FROM dataset('deadletters');

CREATE TEMP VIEW base_files AS FROM dataset('base');

-- A field of a message, as the stream and as the log has it.
CREATE MACRO fact(name, s, r) AS {'field': name, 'streamed': s::VARCHAR, 'rebuilt': r::VARCHAR};

-- The clock: the time up to which the log is known. The statistics of files' columns have it.
SET VARIABLE horizon = (
    SELECT max(stats_max_value::TIMESTAMPTZ)
    FROM parquet_metadata([dataset_pattern('raw'), dataset_pattern('messages')])
    WHERE path_in_schema = 'recorded_at'
);
