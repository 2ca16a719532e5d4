"""Contracts and plumbing that every package shares: records, topics, Kafka settings. Imports no other package."""
