"""Receives webhooks over HTTP and writes each, raw, to Kafka."""
