"""Processes of a pipeline: supervisor, readiness, metrics endpoints, logs and output."""
