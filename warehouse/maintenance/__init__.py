"""Maintenance of landed files: compaction, retention, erasure."""
