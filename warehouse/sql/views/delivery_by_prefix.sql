-- A row: the outgoing messages of one source to one network of one country, first reported on one day (UTC).
-- Key: source, day, country, network_prefix.
-- Units: country is the ISO region of the number, as the library phonenumbers has it: +1 416 is CA, +7 701 is KZ.
--   network_prefix is the longest prefix, in international form without +, for which that library has a carrier. carrier
--   is the name of the carrier that got it first, for numbers can be ported. All three are null for recipients that are
--   no international number. Counts and rates are as in delivery_hourly.
-- Freshness: as delivery_hourly.
SELECT
    source, day, country, network_prefix, carrier,
    sum(COLUMNS(count_columns()))::BIGINT AS '\0'
FROM (FROM rollup('networks') UNION ALL BY NAME FROM count_networks('changes'))
GROUP BY source, day, country, network_prefix, carrier
HAVING sum(attempted) > 0
