-- A row: a critical expectation that did not hold at its last check, within a day.
SELECT
    'pipeline' AS scope,
    '*' AS source,
    NULL AS device_id,
    expectation AS part,
    true AS is_bad,
    epoch_ms(failing_since) AS since,
    format('{} does not hold: {} {}', expectation, meaning, action) AS what
FROM quality
WHERE
    NOT success
    AND severity = 'critical'
    AND checked_at BETWEEN getvariable('now') - INTERVAL 1 DAY AND getvariable('now')
