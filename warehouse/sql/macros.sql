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

-- Newcombe's interval of the difference of two rates, of 95 %: Wilson's bounds of both. Null without a whole.
-- Source: R. G. Newcombe, Interval estimation for the difference between independent proportions (1998), method 10.
CREATE MACRO difference_low(part, whole, other_part, other_whole) AS
    part / whole - other_part / other_whole - sqrt(
        (part / whole - wilson_low(part, whole)) ** 2
        + (wilson_high(other_part, other_whole) - other_part / other_whole) ** 2
    );

CREATE MACRO difference_high(part, whole, other_part, other_whole) AS
    part / whole - other_part / other_whole + sqrt(
        (wilson_high(part, whole) - part / whole) ** 2
        + (other_part / other_whole - wilson_low(other_part, other_whole)) ** 2
    );

-- Natural logarithm of the number of ways to choose a part of a whole.
CREATE MACRO log_choose(whole, part) AS lgamma(whole + 1) - lgamma(part + 1) - lgamma(whole - part + 1);

-- Probability that a group as good as the others has at least so many failures: Fisher's exact test, one-sided. Null
-- without a group or others. The sum ends where its terms vanish: ten standard deviations beyond the failures.
CREATE MACRO chance_of_failures(failed, ended, others_failed, others_ended) AS CASE
    WHEN ended = 0 OR others_ended = 0 THEN NULL
    WHEN failed * others_ended <= others_failed * ended THEN 1.0
    ELSE least(1.0, list_sum([
        exp(
            log_choose(ended, k) + log_choose(others_ended, failed + others_failed - k)
            - log_choose(ended + others_ended, failed + others_failed)
        )
        FOR k IN range(
            failed, least(ended, failed + others_failed, failed + 50 + (10 * sqrt(ended))::BIGINT) + 1
        )
    ]))
END;

-- Whether devices, or channels, fail more often than the others of their source: rows with their ended and delivered
-- attempts, and in addition others_ended, others_delivered, chance, false_discovery_rate and is_failing. Without others
-- the last three are null. Of all devices with is_failing, at most 5 % are expected to be well.
-- Source: Y. Benjamini and Y. Hochberg, Controlling the false discovery rate (1995).
CREATE MACRO judge_devices(rows) AS TABLE
WITH compared AS (
    SELECT
        *, chance_of_failures(ended - delivered, ended, others_ended - others_delivered, others_ended) AS chance
    FROM (
        SELECT
            *,
            (sum(ended) OVER fleet - ended)::BIGINT AS others_ended,
            (sum(delivered) OVER fleet - delivered)::BIGINT AS others_delivered
        FROM query_table(rows)
        WINDOW fleet AS (PARTITION BY source)
    )
),

ranked AS (
    SELECT
        *,
        count(chance) OVER (PARTITION BY source) AS compared_devices,
        row_number() OVER (PARTITION BY source ORDER BY chance NULLS LAST, device_id) AS place
    FROM compared
)

SELECT
    * EXCLUDE (compared_devices, place),
    min(chance * compared_devices / place) OVER (
        PARTITION BY source ORDER BY place DESC ROWS UNBOUNDED PRECEDING
    ) AS false_discovery_rate,
    false_discovery_rate <= 0.05 AS is_failing
FROM ranked;

-- Failures over those that were expected, drawn towards 1 by two of each; and the standard error of its logarithm, of which
-- the variance of the expected number is a part.
CREATE MACRO shrunk_ratio(failed, expected) AS (failed + 2) / (expected + 2);

CREATE MACRO ratio_error(failed, expected, variance) AS sqrt(1 / (failed + 2) + variance / (expected + 2) ** 2);

-- A rate of failures, with five attempts at the usual rate added. Null if it would be of fewer than ten attempts.
CREATE MACRO reference_rate(failed, ended, usual) AS CASE WHEN ended >= 10 THEN (failed + 5 * usual) / (ended + 5) END;

-- What is to blame for the failures of routes: rows with source, device_id, channel_id, country, network_prefix, carrier,
-- delivered and failed. See docs/explanation/blame.md.
CREATE MACRO blame_routes(rows) AS TABLE
WITH cells AS (
    SELECT
        source, device_id, channel_id, country, network_prefix, carrier,
        delivered + failed AS ended,
        failed
    FROM query_table(rows)
    WHERE delivered + failed > 0 AND device_id IS NOT NULL
),

tested AS (
    SELECT
        source,
        -- An upper bound of the normal quantile, so that 95 of 100 times no interval of the source misses.
        sqrt(2 * ln((
            count(DISTINCT device_id) + count(DISTINCT (device_id, coalesce(channel_id, -1)))
            + count(DISTINCT (coalesce(country, ''), coalesce(network_prefix, '')))
        ) / 0.05)) AS errors
    FROM cells
    GROUP BY source
),

-- Of each cell: its network by other phones, and its SIM card with other networks.
referenced AS (
    SELECT
        *,
        sum(failed) OVER of_source / sum(ended) OVER of_source AS usual,
        sum(ended) OVER of_network - sum(ended) OVER of_phone_network AS network_ended,
        sum(failed) OVER of_network - sum(failed) OVER of_phone_network AS network_failed,
        sum(ended) OVER of_sim - ended AS sim_ended,
        sum(failed) OVER of_sim - failed AS sim_failed
    FROM cells
    WINDOW
        of_source AS (PARTITION BY source),
        of_network AS (PARTITION BY source, country, network_prefix),
        of_phone_network AS (PARTITION BY source, device_id, country, network_prefix),
        of_sim AS (PARTITION BY source, device_id, channel_id)
),

rated AS (
    SELECT
        *,
        reference_rate(network_failed, network_ended, usual) AS network_rate,
        reference_rate(sim_failed, sim_ended, usual) AS sim_rate,
        CASE WHEN network_rate IS NOT NULL THEN failed ELSE 0 END AS compared_failed,
        coalesce(ended * network_rate, 0) AS expected,
        coalesce(ended ** 2 * network_rate * (1 - network_rate) / (network_ended + 5), 0) AS variance,
        CASE WHEN network_rate IS NOT NULL THEN ended ELSE 0 END AS compared_ended,
        CASE WHEN sim_rate IS NOT NULL THEN failed ELSE 0 END AS across_failed,
        coalesce(ended * sim_rate, 0) AS across_expected,
        coalesce(ended ** 2 * sim_rate * (1 - sim_rate) / (sim_ended + 5), 0) AS across_variance,
        CASE WHEN sim_rate IS NOT NULL THEN ended ELSE 0 END AS across_ended
    FROM referenced
),

summed AS (
    SELECT
        source, device_id, channel_id, country, network_prefix, carrier, ended, failed,
        sum(compared_ended) OVER of_phone AS phone_ended,
        sum(compared_failed) OVER of_phone AS phone_failed,
        sum(expected) OVER of_phone AS phone_expected,
        sum(variance) OVER of_phone AS phone_variance,
        sum(compared_ended) OVER of_sim AS sim_ended,
        sum(compared_failed) OVER of_sim AS sim_failed,
        sum(expected) OVER of_sim AS sim_expected,
        sum(variance) OVER of_sim AS sim_variance,
        sum(across_ended) OVER of_network AS network_ended,
        sum(across_failed) OVER of_network AS network_failed,
        sum(across_expected) OVER of_network AS network_expected,
        sum(across_variance) OVER of_network AS network_variance
    FROM rated
    WINDOW
        of_phone AS (PARTITION BY source, device_id),
        of_sim AS (PARTITION BY source, device_id, channel_id),
        of_network AS (PARTITION BY source, country, network_prefix)
),

-- The phone's other SIM cards say what its phone makes of the failures that its networks would give it.
compared AS (
    SELECT
        *,
        CASE WHEN phone_ended > 0 THEN shrunk_ratio(phone_failed, phone_expected) END AS phone_ratio,
        ratio_error(phone_failed, phone_expected, phone_variance) AS phone_error,
        shrunk_ratio(phone_failed - sim_failed, phone_expected - sim_expected) AS siblings_ratio,
        CASE
            WHEN sim_ended > 0 AND phone_ended - sim_ended >= 10
                THEN shrunk_ratio(sim_failed, sim_expected * siblings_ratio)
        END AS sim_ratio,
        sqrt(
            ratio_error(sim_failed, sim_expected * siblings_ratio, sim_variance * siblings_ratio ** 2) ** 2
            + ratio_error(
                phone_failed - sim_failed, phone_expected - sim_expected, greatest(phone_variance - sim_variance, 0)
            ) ** 2
        ) AS sim_error,
        CASE WHEN network_ended > 0 THEN shrunk_ratio(network_failed, network_expected) END AS network_ratio,
        ratio_error(network_failed, network_expected, network_variance) AS network_error
    FROM summed
),

judged AS (
    SELECT
        source, device_id, channel_id, country, network_prefix, carrier, ended, failed,
        phone_ratio,
        phone_ratio * exp(-errors * phone_error) AS phone_ratio_low,
        phone_ratio * exp(errors * phone_error) AS phone_ratio_high,
        sim_ratio,
        sim_ratio * exp(-errors * sim_error) AS sim_ratio_low,
        sim_ratio * exp(errors * sim_error) AS sim_ratio_high,
        network_ratio,
        network_ratio * exp(-errors * network_error) AS network_ratio_low,
        network_ratio * exp(errors * network_error) AS network_ratio_high,
        -- A small excess of many attempts is beyond chance, and nobody's fault.
        coalesce(phone_ratio >= 1.5 AND phone_ratio_low > 1, false) AS is_phone,
        coalesce(sim_ratio >= 1.5 AND sim_ratio_low > 1, false) AS is_sim,
        coalesce(network_ratio >= 1.5 AND network_ratio_low > 1, false) AS is_network
    FROM compared
    INNER JOIN tested USING (source)
)

SELECT
    * EXCLUDE (is_phone, is_sim, is_network),
    CASE
        WHEN (is_phone OR is_sim) AND is_network THEN 'unclear'
        WHEN is_network THEN 'network'
        WHEN is_sim THEN 'SIM card'
        -- One of its SIM cards explains what the phone seems to do.
        WHEN is_phone AND NOT bool_or(is_sim) OVER (PARTITION BY source, device_id)
            THEN CASE WHEN sim_ratio IS NULL THEN 'phone or SIM card' ELSE 'phone' END
    END AS cause
FROM judged;

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

-- Whether the first attempt of a message delivered it.
CREATE MACRO is_delivered_first(outcome, attempts, attempt_details) AS
    outcome = 'delivered' AND coalesce(attempt_details[1].outcome = 'delivered', attempts = 1);

-- The attempts of messages: the columns that rollups need, of each, in the place of the message's. Their sign and day are
-- the message's.
CREATE MACRO attempts_of(rows) AS TABLE
SELECT
    sign, day, source,
    CASE WHEN each IS NULL THEN device_id ELSE each.device_id END AS device_id,
    CASE WHEN each IS NULL THEN channel_id ELSE each.channel_id END AS channel_id,
    recipient,
    CASE WHEN each IS NULL THEN outcome ELSE each.outcome END AS outcome,
    CASE WHEN each IS NULL THEN failure_class ELSE each.failure_class END AS failure_class,
    CASE WHEN each IS NULL THEN last_status_id ELSE each.status_id END AS last_status_id,
    CASE WHEN each IS NULL THEN is_ended ELSE each.ended_at IS NOT NULL END AS is_ended,
    first_seen_at,
    CASE WHEN each IS NULL THEN last_seen_at ELSE each.last_seen_at END AS last_seen_at
-- One reference to the rows, not one for each kind of message: rows are often a view, which would be planned twice.
FROM (SELECT *, unnest(coalesce(attempt_details, [NULL])) AS each FROM query_table(rows) WHERE outcome <> 'incoming');

-- The digits of an international number by which its network is looked up; null for other numbers.
CREATE MACRO number_head(number) AS CASE WHEN number LIKE '+%' THEN substr(number, 2, 9) END;

-- The network of each head of a recipient in rows: head, country, network_prefix and carrier. Numbers are many and their
-- heads few.
CREATE MACRO networks_of(rows) AS TABLE
SELECT head, longest.country, longest.network_prefix, longest.carrier
FROM (
    SELECT
        head,
        max_by({'country': country, 'network_prefix': network_prefix, 'carrier': carrier}, len(prefix)) AS longest
    FROM (
        SELECT head, unnest(range(1, 10)) AS size
        FROM (SELECT DISTINCT number_head(recipient) AS head FROM query_table(rows)) AS heads
    ) AS cut
    INNER JOIN dataset('prefixes') AS prefixes ON prefix = substr(head, 1, size)
    GROUP BY head
);

-- Names of the columns in delivery_hourly that its sums have too, as a regular expression.
CREATE MACRO count_columns() AS
    '^(attempted|ended|delivered|first_try_delivered|undelivered|not_sent|not_permitted|expired'
    || '|generic|no_service|null_pdu|radio_off|other|open)$';
