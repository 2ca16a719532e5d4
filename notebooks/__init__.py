"""Notebooks that read the warehouse."""
