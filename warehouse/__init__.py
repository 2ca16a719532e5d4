"""Lands topics as Parquet and answers SQL about them with DuckDB."""
