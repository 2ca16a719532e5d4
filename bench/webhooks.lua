-- wrk's script: a status report of another message each time; an argument is the mean pause of a connection in ms.
local sent, pause = 0, 0

function init(args)
    pause = tonumber(args[1] or "0")
    wrk.method = "POST"
    wrk.headers["Content-Type"] = "application/json"
end

function request()
    sent = sent + 1
    return wrk.format(nil, nil, nil, string.format(
        '{"sms_id": %d, "status_id": 7, "status_message": "Delivered", "device_id": 8001, "channel_id": 1, '
            .. '"senttime": "2026-11-24 07:34:26", "sendto": "+4915700000001"}', sent))
end

function delay()
    return pause > 0 and math.random(0, 2 * pause) or 0
end

function done(summary, latency, requests)
    local errors = summary.errors
    print(string.format("measured %d %d %d %d", summary.requests, summary.duration, latency:percentile(99),
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
