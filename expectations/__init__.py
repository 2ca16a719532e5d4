"""Data-quality checks of the warehouse with Great Expectations."""
