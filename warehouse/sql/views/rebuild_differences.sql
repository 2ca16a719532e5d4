-- A row: a field in which the stream's result of a message differs from the result that follows from the log.
-- Key: message_key, field. The field `message` means that one of the two has no such message.
-- Units: values as text. date is the UTC date of the message's first report.
-- Freshness: of the last `smspulse rebuild` of that day. It is empty if stream and log agree.
SELECT * FROM dataset('differences')
