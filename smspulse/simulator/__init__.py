"""Simulated gateway traffic: scenarios from a seed, sent over real HTTP, with the ground truth of every message."""
