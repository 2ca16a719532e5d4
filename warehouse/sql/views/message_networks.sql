-- A row: one outgoing message with the network of its recipient.
-- Key: source, sms_id (and so message_key). A view of its own, because a query of messages would take longer with it.
-- Units: country, network_prefix and carrier are as in delivery_by_prefix, null for recipients that are no international
--   number. day is that of the first report (UTC): a query for certain days reads only their files.
-- Freshness: as messages.
WITH known AS MATERIALIZED (FROM networks_of('messages_by_day'))

SELECT day, source, sms_id, message_key, country, network_prefix, carrier
FROM messages_by_day
LEFT JOIN known ON known.head = number_head(recipient)
WHERE outcome <> 'incoming'
