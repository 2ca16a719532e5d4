"""Alerts outside the stream: rules over the warehouse, the state of all alerts, and their dispatch to receivers."""
