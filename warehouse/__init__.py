"""Lands topics as Parquet and answers SQL about them with DuckDB."""

from warehouse.reader import open_warehouse, query

__all__ = ["open_warehouse", "query"]
