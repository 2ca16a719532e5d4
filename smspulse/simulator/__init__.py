"""Simulated gateway traffic: stories written from a seed, told over real HTTP, with the truth of every message."""
