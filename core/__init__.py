"""Contracts and plumbing that every package shares: records, topics, Kafka settings. Imports nothing of ours."""
