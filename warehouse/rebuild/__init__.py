"""The log, read anew: lifecycles of all messages from raw webhooks, in SQL, beside and against the stream's."""
