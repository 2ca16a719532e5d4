"""Processes of a pipeline: supervisor, readiness, metrics endpoints, data folder, logs and output."""
